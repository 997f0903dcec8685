"""``checks.lock``: which golden traces were accepted, when, why, and what made them. To be reviewed like code.

::

    [check."decode v1"]
    date = "2026-07-01T12:00:00+00:00"
    device = "cpu: x86_64, AVX512"
    digest = "9f0c..."
    format = 2
    golden = "decode.pack"
    reason = "the new norm is fused; checked by hand"
    weights = "31b7..."

    [check."decode v1".versions]
    tracereplay = "0.1.0"
    torch = "2.13.0"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from tracereplay.checked import COUNT, OBJECT, STRING, checked
from tracereplay.checked import Check as Takes
from tracereplay.checks.table import read_toml
from tracereplay.errors import UsageError
from tracereplay.storage.atomic import written

__all__ = ["Locked", "read_lock", "write_lock"]

_NONE: Mapping[str, Any] = {"settings": {}, "versions": {}}
_HEAD = "# Written by `tracereplay check --update`; review it like code.\n\n"
_TAKES: Mapping[str, Takes] = {
    "date": STRING, "device": STRING, "digest": STRING, "format": COUNT, "golden": STRING, "reason": STRING,
    "weights": STRING, "settings": OBJECT, "versions": OBJECT,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Locked:
    """A golden trace as it was accepted; texts are empty where something is not known.

    Args:
        golden: as the row has it, so that the file is the same wherever it lies.
        digest, weights, device, format: of the trace, see `golden`.
        settings: of the row; None stands there as ``"null"``.
        reason, date: why it was accepted, and when (UTC, ISO 8601).
        versions: of tracereplay, and of what recorded it.
    """

    golden: str
    digest: str
    reason: str
    date: str
    weights: str = ""
    device: str = ""
    format: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        tables = {"settings": self.settings, "versions": self.versions}
        return {
            "date": self.date, "device": self.device, "digest": self.digest, "format": self.format,
            "golden": self.golden, "reason": self.reason, "weights": self.weights,
            **{name: _sorted(values) for name, values in tables.items() if values},
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Locked:
        settings = {key: None if value == "null" else value for key, value in data["settings"].items()}
        return cls(**{**data, "settings": settings})


def read_lock(path: Path) -> dict[str, Locked]:
    """By the names of rows; empty if there is no file.

    Raises:
        UsageError: it is not what `write_lock` writes.
    """
    if not path.exists():
        return {}
    _, document = read_toml(path, "lock file")
    rows = document.get("check", {})
    if set(document) - {"check"} or not isinstance(rows, dict):
        raise UsageError(f"{path} is not a lock file of `tracereplay check`; restore it, or remove it.")
    return {
        name: Locked.from_dict(
            checked({**_NONE, **row} if isinstance(row, dict) else row, _TAKES, f"{name!r} in {path}")
        )
        for name, row in rows.items()
    }


def write_lock(path: Path, locked: Mapping[str, Locked]) -> None:
    """Writes the file anew, sorted, at once or not at all."""
    rows = {name: locked[name].as_dict() for name in sorted(locked)}
    with written(path) as file:
        file.write((_HEAD + tomli_w.dumps({"check": rows})).encode())


def _sorted(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: "null" if values[key] is None else values[key] for key in sorted(values)}
