"""Golden traces of checks: brought to this machine, and whether they are those that are meant.

A golden trace's signature is what it was recorded on and for: weights, settings, class of device, format. Where
that does not fit, what it holds says nothing about the engine under test, and the verdict is inconclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tracereplay.checks.lock import Locked
from tracereplay.checks.table import Check
from tracereplay.comparator.numbers.findings import source_of
from tracereplay.storage.files import is_url
from tracereplay.store.cache import kept
from tracereplay.trace import Trace, open_trace
from tracereplay.verdict import Mode, Source, Verdict

__all__ = ["UPDATE", "device_class", "misfits", "opened_golden", "other_device", "without_a_run"]

UPDATE = "tracereplay check --update --reason"
Report = Callable[[str], None]


@contextmanager
def opened_golden(check: Check, report: Report) -> Iterator[Trace]:
    """A row's golden trace on this machine; one at a URL is kept in the user's cache, by its digest.

    Raises:
        TraceError: it cannot be read.
    """
    with _here(check.golden, report) as path, open_trace(path) as trace:
        trace.require_recording()
        yield trace


def _here(golden: str, report: Report) -> AbstractContextManager[str | Path]:
    return kept(golden, report) if is_url(golden) else nullcontext(golden)


def misfits(check: Check, trace: Trace, locked: Locked | None) -> list[str]:
    """How a golden trace is not the one that the row and ``checks.lock`` mean, in sentences; none if it is."""
    digest = trace.digest()
    found = []
    if check.digest not in (None, digest):
        found.append(
            f"The digest of {check.golden} is {digest}, and the row asks for {check.digest}: it is another trace."
        )
    if locked is None:
        return found
    if locked.digest != digest:
        found.append(
            f"The digest of {check.golden} is {digest}, and checks.lock has {locked.digest}: it was replaced. "
            f"Restore it, or accept a new one with {UPDATE} TEXT."
        )
    has = {
        "weights": (locked.weights, trace.run.weights or ""),
        "device": (device_class(locked.device), device_class(trace.run.engine.get("device"))),
        "format": (str(locked.format), str(trace.format)),
        "settings": (_plain(locked.settings), _plain(check.settings)),
    }
    for part, (expected, now) in has.items():
        if expected != now and part not in check.accept:
            whose = "the row has" if part == "settings" else "the trace has"
            found.append(
                f"The golden trace was accepted with {part} {expected or 'unknown'}, and {whose} "
                f"{now or 'none'}; accept it anew with {UPDATE} TEXT."
            )
    return found


def other_device(check: Check, trace: Trace, engine: Mapping[str, Any]) -> list[str]:
    """A sentence if golden was recorded on another class of device than the engine under test computes on."""
    golden, candidate = device_class(trace.run.engine.get("device")), device_class(engine.get("device"))
    if "device" in check.accept or not golden or not candidate or golden == candidate:
        return []
    return [
        f"The golden trace was recorded on {golden}, and the engine computes on {candidate}, where kernels may "
        'sum in another order. Record a golden trace there, or give the row accept = ["device"].'
    ]


def device_class(device: object) -> str:
    """What a device is called, without the versions of its drivers; empty if it is not known."""
    return device.partition(" (")[0] if isinstance(device, str) else ""


def without_a_run(trace: Trace, engine: str, mode: Mode, reasons: list[str]) -> Verdict:
    """The verdict on a golden trace that does not fit."""
    golden = source_of(trace, trace.digest())
    return Verdict("inconclusive", mode, None, tuple(reasons), golden, Source({"name": engine}, "", None))


def _plain(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={settings[name]!r}" for name in sorted(settings))
