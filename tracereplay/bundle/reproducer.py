"""The reproducer of the first call that differs, for those bundles that can have one."""

from __future__ import annotations

from pathlib import Path

from tracereplay.alone.constants import Constants
from tracereplay.errors import TracereplayError
from tracereplay.passes import RECORD
from tracereplay.report.repro import (
    choose_call,
    choose_kernel,
    reproduce_kernel,
    reproduce_operator,
    write_reproducer,
)
from tracereplay.trace import Trace
from tracereplay.trace.parameters import Parameters
from tracereplay.verdict import Divergence, Verdict

__all__ = ["write_first"]


def write_first(golden: Trace, verdict: Verdict, folder: Path, checkpoint: Path | None) -> str | None:
    """Writes the first divergence's call into ``folder``, which is created.

    Args:
        golden: the trace that has the call.
        verdict: names it.
        folder: where the script goes.
        checkpoint: where the operator's weights are looked for.

    Returns:
        Why there is none, in a sentence; None if there is one.
    """
    first = verdict.first_divergence
    if first is None:
        return "No single call differs first, so there is no reproducer of one."
    if first.kind == "edge":
        return "What differs first lies between operators, so there is no reproducer of a call."
    try:
        _write(golden, first, _golden_site(verdict, first), folder, checkpoint)
    except TracereplayError as error:
        return f"There is no reproducer of the first call that differs: {error}"
    return None


def _golden_site(verdict: Verdict, first: Divergence) -> str:
    """What golden calls the operator."""
    pairs = (found.pairing for found in verdict.operators if found.site == first.site)
    return next((pair.golden_site for pair in pairs if pair is not None and pair.golden_site), first.site)


def _write(golden: Trace, first: Divergence, site: str, folder: Path, checkpoint: Path | None) -> None:
    if first.kernel is not None:
        kernel, _ = choose_kernel(golden, site, first.kernel, first.step)
        constants = Constants(golden, golden.ranks(RECORD)[0], checkpoint)
        write_reproducer(reproduce_kernel(golden, first.step, kernel, constants), folder)
        return
    call, _ = choose_call(golden, site, first.step)
    operator = golden.sites(RECORD)[site]
    found = reproduce_operator(golden, first.step, operator, call, Parameters(golden, checkpoint))
    write_reproducer(found, folder)
