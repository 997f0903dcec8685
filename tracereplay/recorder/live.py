"""The requests that are under way, with their tokens so far: what a trace that begins in the middle must hold.

A trace that begins while requests run (the next of a rotation, what a flight recorder kept) cannot be replayed
from its own steps alone: a replay generates each request from its prompt on, with golden's tokens forced. So such
a trace begins with a step that has no rows and no calls, only the live requests and the tokens that they have.

The writer process keeps this: it has every token on the host, whatever device sampled it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from tracereplay.event import Request, RowKey, Sampled

__all__ = ["Beginning", "Key", "LiveRequests", "Moved"]

Key: TypeAlias = tuple[int, int]  # request and sequence
Moved: TypeAlias = Sequence[tuple[int, int, int, int]]  # request and sequence in one trace, and in the next


class Beginning(NamedTuple):
    """What the step without calls holds."""

    requests: list[Request]
    sampled: list[Sampled]


class LiveRequests:
    """Requests of which steps still come."""

    def __init__(self) -> None:
        self._requests: dict[Key, Request] = {}
        self._sampled: dict[Key, list[Sampled]] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def requested(self, requests: Iterable[Request]) -> None:
        """Adds requests that begin."""
        for request in requests:
            self._requests[request.request, request.sequence] = request

    def sampled(self, sampled: Iterable[Sampled]) -> None:
        """Adds tokens; those of a request that is not known are nobody's."""
        for one in sampled:
            key = one.key.request, one.key.sequence
            if key in self._requests:
                self._sampled.setdefault(key, []).append(one)

    def finished(self, keys: Iterable[Key]) -> None:
        """Forgets requests."""
        for key in keys:
            self._requests.pop(key, None)
            self._sampled.pop(key, None)

    def ended(self, requests: Collection[int]) -> None:
        """Forgets all sequences of requests, by their numbers."""
        if requests:
            self.finished([key for key in self._requests if key[0] in requests])

    def moved(self, moved: Moved) -> LiveRequests:
        """The requests that go on, under their numbers in the next trace."""
        found = LiveRequests()
        for request, sequence, to_request, to_sequence in moved:
            known = self._requests.get((request, sequence))
            if known is None:
                continue
            key = to_request, to_sequence
            found._requests[key] = replace(known, request=to_request, sequence=to_sequence)
            found._sampled[key] = [
                replace(one, key=RowKey(*key, one.key.position))
                for one in self._sampled.get((request, sequence), ())
            ]
        return found

    def beginning(self) -> Beginning:
        """What a trace that begins now must hold of them."""
        sampled = [one for key in self._requests for one in self._sampled.get(key, ())]
        return Beginning(list(self._requests.values()), sampled)
