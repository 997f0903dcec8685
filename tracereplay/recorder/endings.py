"""Which sequences of a ring have ended, and why: by a worker's word and by a front end's, each sequence once.

    a worker says      with the engine's next step, why as far as tokens show it
    a front end says   at once (`ends`), why in any case; perhaps before the sequence's last step is here

Triggers look at an end once. A worker's word is enough where tokens decide it. Where they do not, a front end is
given a moment to say more; and a front end's word waits for the tokens that it counts.

This is asked with each message from the engine, so that it looks only at ends about which something has become
known since, and at those that have waited for longest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from tracereplay.recorder.ends import End, EndsHeard
from tracereplay.recorder.ring import KeptStep, SequenceKey
from tracereplay.recorder.triggers import Ended
from tracereplay.trace.plain import unpack

__all__ = ["Endings"]

MOMENT = 1.0  # seconds that an end waits for what else is known of it, while nothing arrives
LONGEST = 10.0  # the same, whatever arrives
DECIDED = ("length", "stop")  # reasons that a worker sees in the tokens
MOST = 1 << 16  # sequences that are known to run; engines have fewer

_Place = TypeVar("_Place")
_Said = TypeVar("_Said")


class _Live(NamedTuple):
    name: str | None  # the engine's id; None: no step says it
    tokens: int  # that are here


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
        # Ends that are not looked at yet, and since when; the oldest first. A sequence is in one of them only.
        self._fronts: dict[str, tuple[float, End]] = {}
        self._workers: dict[SequenceKey, tuple[float, Ended]] = {}
        self._fresh: dict[str, None] = {}  # of which something is known since `due` looked at them

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
                self._news_of(name)
        while len(self._live) > MOST:
            self._forget(next(iter(self._live)))
        for request, sequence, _ in kept.sampled["key"].tolist():
            live = self._live.get((request, sequence))
            if live is not None:
                self._live[request, sequence] = live._replace(tokens=live.tokens + 1)
                self._news_of(live.name)

    def said(self, ends: Iterable[Ended]) -> list[Ended]:
        """What a worker says, all of whose steps are here; returns what triggers shall look at now."""
        found = []
        for end in ends:
            key = end.request, end.sequence
            live = self._live.get(key)
            if live is None:
                if not self._talk:  # of a sequence that began before the ring
                    found.append(end)
            elif live.name is not None and (front := self._fronts.pop(live.name, None)) is not None:
                found.append(self._over(key, front[1].reason, front[1].tokens))
            elif end.reason in DECIDED or live.name is None or not self._talk:
                found.append(self._over(key, end.reason, end.tokens))
            else:
                self._workers[key] = time.monotonic(), end
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
            self._fronts.setdefault(said.id, (now, said))
            self._fresh[said.id] = None
        fresh, self._fresh = self._fresh, {}
        found = [end for name in fresh if (end := self._complete(name)) is not None]
        for name, front in _waited(self._fronts, now, 0.0 if last else MOMENT if idle else LONGEST):
            if (key := self._named.get(name)) is not None:  # else another ring's, or it ended by a worker's word
                found.append(self._over(key, front.reason, front.tokens))
        for key, end in _waited(self._workers, now, 0.0 if last else MOMENT):
            if key in self._live:
                found.append(self._over(key, end.reason, end.tokens))
        return found

    def close(self) -> None:
        if self._heard is not None:
            self._heard.close()

    def _news_of(self, name: str | None) -> None:
        if name is not None and name in self._fronts:
            self._fresh[name] = None

    def _complete(self, name: str) -> Ended | None:
        """The end that a front end has said, if all tokens are here that it counts, or no more will come."""
        key = self._named.get(name)
        if key is None or name not in self._fronts:
            return None
        end = self._fronts[name][1]
        here = end.tokens is not None and self._live[key].tokens >= end.tokens
        if not here and key not in self._workers:
            return None
        del self._fronts[name]
        return self._over(key, end.reason, end.tokens)

    def _over(self, key: SequenceKey, reason: str, tokens: int | None) -> Ended:
        live = self._live[key]
        self._forget(key)
        return Ended(*key, reason, live.tokens if tokens is None else tokens)

    def _forget(self, key: SequenceKey) -> None:
        name = self._live.pop(key).name
        self._workers.pop(key, None)
        if name is not None:
            self._named.pop(name, None)


def _waited(waiting: dict[_Place, tuple[float, _Said]], now: float, seconds: float) -> list[tuple[_Place, _Said]]:
    """Takes out what has waited for so long."""
    found = []
    for place, (since, said) in waiting.items():
        if now - since < seconds:
            break
        found.append((place, said))
    for place, _ in found:
        del waiting[place]
    return found
