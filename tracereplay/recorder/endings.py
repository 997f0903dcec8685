"""Which sequences of a ring have ended, and why: by a worker's word and by a front end's, each sequence once.

    a worker says      with the engine's next step, why as far as tokens show it
    a front end says   at once (`ends`), why in any case; perhaps before the sequence's last step is here

Triggers look at an end once. A worker's word is enough where tokens decide it. Where they do not, a front end is
given a moment to say more; and a front end's word waits for the tokens that it counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from tracereplay.recorder.ends import End, EndsHeard
from tracereplay.recorder.ring import KeptStep, SequenceKey
from tracereplay.recorder.triggers import Ended
from tracereplay.trace.plain import unpack

__all__ = ["Endings"]

MOMENT = 1.0  # seconds that an end waits for what else is known of it, while nothing arrives
LONGEST = 10.0  # the same, whatever arrives
DECIDED = ("length", "stop")  # reasons that a worker sees in the tokens
MOST = 1 << 16  # sequences that are known to run; engines have fewer


class _Live(NamedTuple):
    name: str | None  # the engine's id; None: no step says it
    tokens: int  # that are here


class _Waits(NamedTuple):
    """An end that is not looked at yet."""

    since: float
    end: Ended | End


class Endings:
    """See the module.

    Args:
        heard: from front ends; None: there are none.
    """

    def __init__(self, heard: EndsHeard | None) -> None:
        self._heard = heard
        self._talk = False  # whether front ends do
        self._live: dict[SequenceKey, _Live] = {}
        self._named: dict[str, SequenceKey] = {}
        self._waiting: dict[SequenceKey | str, _Waits] = {}  # by name: a front end's

    @property
    def fds(self) -> list[int]:
        """By which front ends are heard."""
        return [] if self._heard is None else [self._heard.fd]

    def step(self, kept: KeptStep) -> None:
        """A step is here."""
        for packed in kept.requests:
            request, sequence, _, _, *rest = unpack(packed, "the request", own=True)
            name = rest[0] if rest and isinstance(rest[0], str) else None
            self._live[request, sequence] = _Live(name, 0)
            if name is not None:
                self._named[name] = (request, sequence)
        while len(self._live) > MOST:
            self._forget(next(iter(self._live)))
        for request, sequence, _ in kept.sampled["key"].tolist():
            live = self._live.get((request, sequence))
            if live is not None:
                self._live[request, sequence] = live._replace(tokens=live.tokens + 1)

    def said(self, ends: Iterable[Ended]) -> list[Ended]:
        """What a worker says, all of whose steps are here; returns what triggers shall look at now."""
        found = []
        for end in ends:
            key = end.request, end.sequence
            live = self._live.get(key)
            if live is None:
                if not self._talk:  # of a sequence that began before the ring
                    found.append(end)
            elif live.name is not None and (front := self._waiting.pop(live.name, None)) is not None:
                found.append(self._over(key, front.end.reason, front.end.tokens))
            elif end.reason in DECIDED or live.name is None or not self._talk:
                found.append(self._over(key, end.reason, end.tokens))
            else:
                self._waiting[key] = _Waits(time.monotonic(), end)
        return found

    def due(self, *, idle: bool, last: bool = False) -> list[Ended]:
        """What triggers shall look at now of what front ends have said, and of what they have not.

        Args:
            idle: whether nothing else has arrived.
            last: whether nothing else will.
        """
        now = time.monotonic()
        for said in [] if self._heard is None else self._heard.read():
            self._talk = True
            self._waiting.setdefault(said.id, _Waits(now, said))
        found = []
        for place, (since, end) in list(self._waiting.items()):
            front = isinstance(end, End)
            late = last or now - since >= (LONGEST if front and not idle else MOMENT)
            key = self._named.get(place) if isinstance(place, str) else place
            live = None if key is None else self._live.get(key)
            if key is None or live is None:
                if late:  # another ring's, or one that has ended by a worker's word
                    del self._waiting[place]
                continue
            here = front and end.tokens is not None and live.tokens >= end.tokens
            if here or (late and (front or live.name not in self._waiting)):
                del self._waiting[place]
                found.append(self._over(key, end.reason, end.tokens))
        return found

    def close(self) -> None:
        if self._heard is not None:
            self._heard.close()

    def _over(self, key: SequenceKey, reason: str, tokens: int | None) -> Ended:
        live = self._live[key]
        self._forget(key)
        return Ended(*key, reason, live.tokens if tokens is None else tokens)

    def _forget(self, key: SequenceKey) -> None:
        name = self._live.pop(key).name
        if name is not None:
            self._named.pop(name, None)
