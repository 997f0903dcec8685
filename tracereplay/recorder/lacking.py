"""Which requests of a recording are not whole: steps of theirs were dropped, or came while it was paused."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from tracereplay.recorder.live import Moved

__all__ = ["Lacking", "lacking_summary"]

NAMED = 1000  # numbers that a summary lists; of more it has the count
MOST_UNTOLD = 1 << 16  # requests that wait for a step; a writer that hangs must not fill the engine's memory


class Lacking:
    """Of one trace."""

    def __init__(self) -> None:
        self.requests: set[int] = set()  # those that have not ended
        self._ended = 0  # how many have
        self._first: list[int] = []  # the lowest of them
        self.paused = 0  # steps that came while the recording was paused
        self._untold: set[int] = set()
        self._told: list[int] = []  # to the step that is under way, which may be given up

    def add(self, requests: Iterable[int]) -> None:
        """Marks requests; negative numbers are nobody's."""
        new = {int(number) for number in requests if number >= 0} - self.requests
        self.requests |= new
        self._untold |= new if len(self._untold) < MOST_UNTOLD else set()

    def ended(self, requests: Iterable[int]) -> None:
        """Requests have come to their ends, and need not be kept apart any more."""
        over = self.requests.intersection(requests)
        if over:
            self.requests -= over
            self._ended += len(over)
            self._first = sorted([*self._first, *over])[:NAMED]

    def tell(self) -> list[int]:
        """Those that were not told yet, for the next step that is recorded."""
        self._told, self._untold = sorted(self._untold), set()
        return self._told

    def take_back(self) -> None:
        """Those that were told last were not."""
        self._untold |= set(self._told)
        self._told = []

    def notes(self) -> list[str]:
        """`tell`, in words."""
        new = self.tell()
        if not new:
            return []
        which = f"Request {new[0]} is" if len(new) == 1 else f"Requests {', '.join(map(str, new[:NAMED]))} are"
        return [f"{which} not whole: steps were left out while the recording was paused, or behind the engine."]

    def summary(self) -> dict[str, Any]:
        """For the end mark."""
        found = lacking_summary([*self._first, *self.requests], self._ended + len(self.requests))
        return {**found, "paused": self.paused} if self.paused else found

    def moved(self, moved: Moved) -> Lacking:
        """Of the next trace, in which requests go on."""
        found = Lacking()
        found.add(request for before, _, request, _ in moved if before in self.requests)
        return found


def lacking_summary(requests: Collection[int], count: int) -> dict[str, Any]:
    """What an end mark says of requests that are not whole: the lowest of ``requests``, and how many there are."""
    return {"lacking": sorted(requests)[:NAMED], "lacking_count": count} if requests else {}
