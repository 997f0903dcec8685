"""What a recording is asked for: by options of the command line, and by arguments of the same names in Python.

Everything is checked here, before anything starts, so that both are refused with the same sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from tracereplay.errors import UsageError
from tracereplay.launch.budget import Budget, budget_of
from tracereplay.recorder import triggers
from tracereplay.recorder.choosing import Choice, positions_of, rate_of
from tracereplay.recorder.options import FIELDS, KERNEL, OPERATOR, Options
from tracereplay.recorder.ring_limits import read_ring, read_seconds
from tracereplay.trace.sealed import check_recipients
from tracereplay.trace.withheld import key_of

__all__ = ["MIN_BYTES", "RING", "How", "how_of", "options_of", "refuse_kernels"]

MIN_BYTES = 1 << 16  # what a segment's description and end take, and some
# What only a ring has, by the names of the arguments, with what stands for "not given".
RING: Mapping[str, Any] = {
    "trigger": None, "trigger_every": "60s", "trigger_most": triggers.MOST, "trigger_after": Options.trigger_after,
}  # fmt: skip
_WITHOUT_A_RING = "A trigger makes a trace of a ring; give its size with --ring; leave out {}."


@dataclass(frozen=True)
class How:
    """How a recording of engines that others start is cut into traces, and controlled.

    Args:
        collection: whether there is a directory of numbered traces, and not one trace.
        ring: whether these hold what triggers find worth it, and nothing else is recorded.
        budget: of a collection.
        control: whether there is a socket by which it is controlled.
        paused: whether it begins with a pause.
    """

    collection: bool = False
    ring: bool = False
    budget: Budget = field(default_factory=Budget)
    control: bool = True
    paused: bool = False


def options_of(
    *, when_behind: str, level: str = OPERATOR, check_writes: bool = True, max_steps: int | None = None,
    max_bytes: int | None = None, keep_fields: str | Iterable[str] = (), sample: str | float | None = None,
    requests: str | Iterable[str] = (), marked: bool = False, sites: str | Iterable[str] = (),
    sides: str | Iterable[str] = "in,out", tokens: str | None = None, every: int = 1, ring: str | None = None,
    trigger: str | Iterable[str] | None = None, trigger_every: str | float = "60s",
    trigger_most: int = triggers.MOST, trigger_after: int = Options.trigger_after,
    encrypt_to: str | Iterable[str] = (), withhold: str | None = None,
    withhold_key: str | PathLike[str] | None = None,
) -> Options:  # fmt: skip
    """What is recorded; the arguments are the options of ``tracereplay record``.

    Raises:
        UsageError: one of them makes no sense, or some do not go together.
    """
    recipients = _several(encrypt_to)
    check_recipients(recipients)
    _among("--level", level, OPERATOR, KERNEL)
    _among("--when-behind", when_behind, "block", "drop")
    if withhold is not None:
        _among("--withhold", withhold, "tokens")
        if level == KERNEL:
            raise UsageError(
                "Tokens cannot be withheld from what kernels read and write; leave out --level kernel."
            )
    _at_least("--max-steps", max_steps, 1)
    _at_least("--max-bytes", max_bytes, MIN_BYTES)
    options = Options(
        max_steps=max_steps, max_bytes=max_bytes, when_behind=when_behind, level=level, check_writes=check_writes,
        recipients=recipients, withhold=key_of(withhold, None if withhold_key is None else Path(withhold_key)),
        keep_fields=_fields(_several(keep_fields)), sites=_several(sites) or Options.sites, sides=_sides(sides),
        choice=_choice(sample, _several(requests), marked, tokens, every),
        **_ring(level, ring, trigger, trigger_every, trigger_most, trigger_after),
    )  # fmt: skip
    refuse_kernels(options)
    return options


def how_of(
    rotate: str | None = None, keep: str | int | None = None, leave_free: str | None = None, *,
    resume_when_room: bool = False, paused: bool = False, control: bool = True, ring: bool = False,
) -> How:  # fmt: skip
    """Into which traces it goes; the arguments are the options of ``tracereplay record``.

    Args:
        ring: whether a flight recorder makes a collection of the traces, too.

    Raises:
        UsageError: they do not go together.
    """
    if ring and rotate is not None:
        raise UsageError("--ring makes a trace when a trigger fires, and --rotate after a size or time; give one.")
    collection = rotate is not None or ring
    given = {"--keep": keep, "--leave-free": leave_free, "--resume-when-room": resume_when_room or None}
    if not collection:
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name} is for a recording of several traces; give --rotate or --ring too.")
    if paused and not control:
        raise UsageError("--paused with --no-control would never record anything; leave out one of them.")
    budget = budget_of(rotate, None if keep is None else str(keep), leave_free, resume=resume_when_room)
    return How(collection, ring, budget, control, paused)


def refuse_kernels(options: Options) -> None:
    """Raises UsageError where kernels would be recorded with the rows of requests that are not."""
    if options.level == KERNEL and (options.choice.chooses or options.choice.tokens is not None):
        raise UsageError(
            "Kernels take whole batches, with the rows of all requests in them; record operators only "
            "(--level operator), or leave out --sample, --requests, --marked and --tokens."
        )


def _several(given: str | Iterable[str]) -> tuple[str, ...]:
    """One text stands for itself."""
    return (given,) if isinstance(given, str) else tuple(given)


def _among(option: str, value: object, *known: str) -> None:
    if value not in known:
        raise UsageError(f"{option} {value} is not known; give {' or '.join(known)}.")


def _at_least(option: str, value: int | None, least: int) -> None:
    if value is not None and (type(value) is not int or value < least):
        raise UsageError(f"{option} {value} is too little; give {least} or more.")


def _sides(given: str | Iterable[str]) -> tuple[str, ...]:
    text = given if isinstance(given, str) else ",".join(given)
    found = tuple(side.strip() for side in text.split(","))
    if not set(found) <= {"in", "out"} or len(set(found)) < len(found):
        raise UsageError(f"--sides {text} is none; give in, out, or in,out.")
    return found


def _choice(
    sample: str | float | None, requests: Sequence[str], marked: bool, tokens: str | None, every: int
) -> Choice:
    if type(every) is not int or every < 1:
        raise UsageError(f"--every {every} would never record a step; give 1 or more.")
    if "" in requests:
        raise UsageError("--requests is empty and fits no request; give a glob of ids, such as 'cmpl-a*'.")
    rate = None if sample is None else rate_of(str(sample))
    return Choice(rate, tuple(requests), marked, None if tokens is None else positions_of(tokens), every)


def _fields(names: Sequence[str]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in FIELDS]:
        raise UsageError(f"{unknown[0]!r} is no field that can be kept; --keep-fields takes {', '.join(FIELDS)}.")
    return tuple(dict.fromkeys(names))


def _ring(
    level: str, ring: str | None, trigger: str | Iterable[str] | None, every: str | float, most: int, after: int
) -> dict[str, Any]:
    """The fields of `Options` for a flight recorder."""
    if ring is None:
        given = {"trigger": trigger, "trigger_every": every, "trigger_most": most, "trigger_after": after}
        names = [f"--{name.replace('_', '-')}" for name, usual in RING.items() if given[name] != usual]
        if names:
            raise UsageError(_WITHOUT_A_RING.format(", ".join(names)))
        return {}
    if level != OPERATOR:
        raise UsageError("A ring keeps operators, not kernels; leave --level kernel out.")
    read_ring(ring)
    asked = () if trigger is None else _several(trigger)
    for text in asked:
        triggers.check_trigger(text)
    _at_least("--trigger-most", most, 1)
    _at_least("--trigger-after", after, 0)
    seconds = read_seconds(every if isinstance(every, str) else f"{every}s")
    return {
        "ring": ring, "triggers": asked or triggers.DEFAULT, "trigger_every": seconds, "trigger_most": most,
        "trigger_after": after,
    }  # fmt: skip
