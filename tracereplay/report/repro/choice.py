"""Selecting the recorded call that a reproducer is made from."""

from __future__ import annotations

from tracereplay.alone.replay import Selection
from tracereplay.errors import UsageError
from tracereplay.event import COMPILED, Call, Kernel
from tracereplay.passes import RECORD
from tracereplay.trace import Trace
from tracereplay.trace.select import matching_sites, step_of

__all__ = ["choose_call", "choose_kernel"]


def choose_kernel(trace: Trace, site: str, kernel: str, step: int, occurrence: int = 0) -> tuple[Kernel, int]:
    """The kernel of that name that ran at a site in a step, and the number of such calls.

    Args:
        trace: a recording with kernels.
        site: the operator's place.
        kernel: name or glob; ``aten.mm`` means any of its overloads.
        step: number of the step.
        occurrence: which of several, from 0.

    Raises:
        UsageError: there is none; the message lists those that ran.
    """
    matching_sites(trace, RECORD, site)
    kernels = step_of(trace, RECORD, step, trace.ranks(RECORD)[0]).kernels
    ran = [k for k in kernels if k.site == site]
    if not ran and any(k.name == COMPILED for k in kernels):
        raise UsageError(
            f"{site} ran inside a compiled graph, which does not show its kernels; record with enforce_eager=true "
            "to see them, or leave out --kernel for the operator as a whole."
        )
    if not ran:
        raise UsageError(f"{trace.path} has no kernels of {site} in step {step}; record it with --level kernel.")
    found = [k for k in ran if Selection(site, kernel).has(k)]
    if not found:
        names = ", ".join(dict.fromkeys(k.name for k in ran))
        raise UsageError(f"No kernel {kernel!r} ran at {site} in step {step}; those that did: {names}.")
    if occurrence >= len(found):
        raise UsageError(
            f"{kernel!r} ran {len(found)} times at {site} in step {step}; --occurrence counts from 0."
        )
    return found[occurrence], len(found)


def choose_call(trace: Trace, site: str, step: int, occurrence: int = 0) -> tuple[Call, int]:
    """The operator's call at a site in a step, and the number of its calls there.

    Raises:
        UsageError: there is none.
    """
    matching_sites(trace, RECORD, site)
    found = [c for c in step_of(trace, RECORD, step, trace.ranks(RECORD)[0]).calls if c.site == site]
    if not found:
        raise UsageError(f"{site} was not called in step {step} of {trace.path}.")
    if occurrence >= len(found):
        raise UsageError(f"{site} was called {len(found)} times in step {step}; --occurrence counts from 0.")
    return found[occurrence], len(found)
