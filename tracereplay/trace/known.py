"""The requests of a recording and who asked for them: what steps number, joined with what front ends said."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from tracereplay.passes import RECORD
from tracereplay.trace.outline import IdOf
from tracereplay.trace.requests import Identity, read_identities

if TYPE_CHECKING:
    from tracereplay.trace.open import Trace

__all__ = ["KnownRequest", "Numbers", "found_by", "identities", "known_requests", "numbers", "served_names"]

MAX_NAME = 1024  # characters
Numbers: TypeAlias = dict[tuple[int, int], tuple[int, str]]


@dataclass(frozen=True, slots=True)
class KnownRequest:
    """A sample of a request of a recorded command.

    Args:
        request, sequence: its numbers in the pass ``record``.
        step: number of the first recorded step that it is in.
        identity: who asked; of an engine whose front end was not recorded, the engine's id alone.
    """

    request: int
    sequence: int
    step: int
    identity: Identity


def known_requests(trace: Trace) -> tuple[KnownRequest, ...]:
    """In the order of their numbers; none in traces whose steps do not say which request is which.

    Raises:
        TraceError: a file of the trace cannot be read.
    """
    said = identities(trace)
    found = (
        KnownRequest(*key, step, said.get(name) or Identity(name)) for key, (step, name) in numbers(trace).items()
    )
    return tuple(sorted(found, key=lambda known: (known.request, known.sequence)))


def identities(trace: Trace, wanted: Collection[str] | None = None) -> dict[str, Identity]:
    """What the front ends say, by the engine's id; of a few requests, without reading all of long files.

    Args:
        trace: to read.
        wanted: ids of some of the first requests; None: all.
    """
    found: dict[str, Identity] = {}
    for file in trace.request_files.values():
        for key, identity in read_identities(file, wanted).items():
            found[key] = identity if key not in found else _fuller(found[key], identity)
    return found


def served_names(trace: Trace) -> tuple[str, ...]:
    """The names under which a recorded server offered its model."""
    found = [trace.part(key).meta.get("served") for key in trace.parts_of(RECORD)[:1]]
    return tuple(str(name)[:MAX_NAME] for name in found[0]) if found and isinstance(found[0], list) else ()


def _fuller(one: Identity, other: Identity) -> Identity:
    """Of two files' words about a request, those that say more: its end, or at least its arrival."""
    return max(one, other, key=lambda identity: (identity.ended is not None, identity.arrived is not None))


def numbers(trace: Trace, most: int | None = None) -> Numbers:
    """By request and sequence, the step in which it begins and the engine's id of it, where steps say that.

    Args:
        trace: to read.
        most: steps that are read at most, where the end does not tell; None: all.
    """
    if RECORD not in trace.passes:
        return {}
    told = trace.outline(RECORD).ids
    if told is None:
        steps = islice(trace.records(RECORD, trace.ranks(RECORD)[0]), most)
        told = [IdOf(s.number, r.request, r.sequence, r.id) for s in steps for r in s.requests if r.id is not None]
    found: Numbers = {}
    for step, request, sequence, name in told:
        found.setdefault((request, sequence), (step, name))
    return found


def found_by(requests: Sequence[KnownRequest], text: str) -> list[KnownRequest]:
    """Those that ``text`` names: by the engine's id or the client's, whole, with or without what the server put
    before it (``cmpl-``); if there is none, those whose id begins so."""
    names = [(known, _names(known.identity)) for known in requests]
    for match in (str.__eq__, str.startswith):
        if some := [known for known, spelled in names if any(match(name, text) for name in spelled)]:
            return some
    return []


_PUT_BEFORE = ("chatcmpl-", "cmpl-")


def _names(identity: Identity) -> list[str]:
    whole = [identity.id, identity.name, identity.client_id]
    bare = [name.removeprefix(before) for name in whole[1:] for before in _PUT_BEFORE if name.startswith(before)]
    return [name for name in (*whole, *bare) if name]
