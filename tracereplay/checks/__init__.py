"""Rows of a table that guard an upgrade: each replays a golden trace and holds the verdict to what is expected.

    checks.toml ──load_checks──▶ CheckFile ──check──▶ Results ──report.checks──▶ table, JUnit, Markdown, ...
    checks.lock ──read_lock────────────────────┘
         ▲
         └── update: records a golden anew, for a reason

Not `tracereplay.gate`, which decides what a stranger's trace may ask for; every row here goes through that.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracereplay.checks.results import Result, Results
    from tracereplay.checks.run import check
    from tracereplay.checks.table import Check, CheckFile, load_checks
    from tracereplay.checks.updating import Updated, update
else:
    from tracereplay.lazily import imported_on_use

    __getattr__ = imported_on_use(
        __name__,
        {
            "tracereplay.checks.results": ("Result", "Results"),
            "tracereplay.checks.run": ("check",),
            "tracereplay.checks.table": ("Check", "CheckFile", "load_checks"),
            "tracereplay.checks.updating": ("Updated", "update"),
        },
    )

__all__ = ["Check", "CheckFile", "Result", "Results", "Updated", "check", "load_checks", "update"]
