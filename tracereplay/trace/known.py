"""The requests of a recording and who asked for them: what steps number, joined with what front ends said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracereplay.passes import RECORD
from tracereplay.trace.requests import Identity, read_identities

if TYPE_CHECKING:
    from tracereplay.trace.open import Trace

__all__ = ["KnownRequest", "found_by", "known_requests", "served_names"]

MAX_NAME = 1024  # characters


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
    said: dict[str, Identity] = {}
    for file in trace.request_files.values():
        for key, identity in read_identities(file).items():
            said[key] = identity if key not in said else _fuller(said[key], identity)
    found: dict[tuple[int, int], KnownRequest] = {}
    for request, sequence, step, name in _numbers(trace):
        identity = said.get(name) or Identity(name)
        found.setdefault((request, sequence), KnownRequest(request, sequence, step, identity))
    return tuple(found[key] for key in sorted(found))


def served_names(trace: Trace) -> tuple[str, ...]:
    """The names under which a recorded server offered its model."""
    found = [trace.part(key).meta.get("served") for key in trace.parts_of(RECORD)[:1]]
    return tuple(str(name)[:MAX_NAME] for name in found[0]) if found and isinstance(found[0], list) else ()


def _fuller(one: Identity, other: Identity) -> Identity:
    """Of two files' words about a request, those that say more: its end, or at least its arrival."""
    return max(one, other, key=lambda identity: (identity.ended is not None, identity.arrived is not None))


def _numbers(trace: Trace) -> Iterator[tuple[int, int, int, str]]:
    """Request, sequence, step and the engine's id, of each request that a step names."""
    if RECORD not in trace.passes:
        return
    told = trace.outline(RECORD).ids
    if told is not None:
        yield from ((one.request, one.sequence, one.step, one.id) for one in told)
        return
    for step in trace.records(RECORD, trace.ranks(RECORD)[0]):
        for request in step.requests:
            if request.id is not None:
                yield request.request, request.sequence, step.number, request.id


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
