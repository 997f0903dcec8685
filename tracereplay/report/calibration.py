"""A calibration for people at a terminal: the runs, their noise, and the resulting tolerances."""

from __future__ import annotations

from rich.console import Console

from tracereplay.calibrator import Calibration
from tracereplay.calibrator.noise import Earned
from tracereplay.comparator import Policy
from tracereplay.report.clean import clean
from tracereplay.report.layout import Row, cell, indented, print_rows, section
from tracereplay.report.words import number

__all__ = ["render"]


def render(found: Calibration, console: Console) -> None:
    """Prints ``found``."""
    section(console, "Runs", "  each compared with golden, every operator on golden inputs")
    for run in found.runs:
        indented(console, clean(run.words))
    for skipped in found.skipped:
        indented(console, clean(f"skipped {skipped.name}: {skipped.reason}"))
    section(console, "Noise and tolerances", "  as multiples of the dtype's default tolerance")
    if found.earned:
        headers = "operator", "dtype", "noise", "tolerated", "a", "b", "worst at"
        print_rows(console, headers, list(map(_row, found.earned)), right=range(2, 6))
    else:
        indented(console, "Every operator and edge is identical bit for bit in all runs; the defaults remain.")
    _warnings(found, console)


def _row(earned: Earned) -> Row:
    a, b = earned.factors
    name = earned.kind.operator if earned.kind.kind == "operator" else f"edge into {earned.kind.operator}"
    beyond = "yellow" if earned.noise > 1 else ""
    return Row([
        cell(name), cell(earned.kind.dtype), cell(number(earned.noise), beyond),
        cell(number(max(1.0, earned.multiple))), cell(number(a)), cell(number(b)), cell(earned.at),
    ])  # fmt: skip


def _warnings(found: Calibration, console: Console) -> None:
    allowed = found.policy.logprob_max_abs
    if found.logprob_max is not None:
        kept = ", the default" if allowed == Policy().logprob_max_abs else ""
        console.print()
        indented(console, f"logprobs differ by {number(found.logprob_max)}; {allowed:g} is tolerated{kept}")
    tokens = max((run.noise.tokens_differ for run in found.runs), default=0)
    if tokens:
        words = f"{tokens} greedy tokens differ in a run; the policy allows none: set [tokens] differing = N"
        indented(console, f"{words} yourself if you consider that noise")
    for place, why in found.unfit.items():
        indented(console, clean(f"{place} {why}; no tolerance allows that"))
    beyond = [earned.kind.operator for earned in found.earned if earned.noise > 1]
    if beyond:
        names = ", ".join(dict.fromkeys(map(clean, beyond)))
        words = "Is that noise? Compare such a run (--keep DIR) before you rely on this."
        indented(console, f"above the default: {names}. {words}")
