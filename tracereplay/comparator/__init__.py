"""Compares two traces: aligns their rows, measures how they differ, judges what that means."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracereplay.comparator.judging.outcome import compare_traces
    from tracereplay.comparator.numbers.policy_file import load_policy
    from tracereplay.comparator.numbers.tolerance import Policy, Rule
else:
    from tracereplay.lazily import imported_on_use

    __getattr__ = imported_on_use(
        __name__,
        {
            "tracereplay.comparator.judging.outcome": ("compare_traces",),
            "tracereplay.comparator.numbers.policy_file": ("load_policy",),
            "tracereplay.comparator.numbers.tolerance": ("Policy", "Rule"),
        },
    )

__all__ = ["Policy", "Rule", "compare_traces", "load_policy"]
