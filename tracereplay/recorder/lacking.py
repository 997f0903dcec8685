"""Which requests of a recording are not whole: steps of theirs were dropped, or came while it was paused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tracereplay.recorder.live import Moved

__all__ = ["Lacking"]

NAMED = 1000  # numbers that a summary lists; of more it has the count


class Lacking:
    """Of one trace."""

    def __init__(self) -> None:
        self.requests: set[int] = set()
        self.paused = 0  # steps that came while the recording was paused
        self._untold: set[int] = set()

    def add(self, requests: Iterable[int]) -> None:
        """Marks requests; negative numbers are nobody's."""
        new = {int(number) for number in requests if number >= 0} - self.requests
        self.requests |= new
        self._untold |= new

    def notes(self) -> list[str]:
        """What was not told yet, for the next step that is recorded."""
        new, self._untold = sorted(self._untold), set()
        if not new:
            return []
        which = f"Request {new[0]} is" if len(new) == 1 else f"Requests {', '.join(map(str, new[:NAMED]))} are"
        return [f"{which} not whole: steps were left out while the recording was paused, or behind the engine."]

    def summary(self) -> dict[str, Any]:
        """For the end mark."""
        found: dict[str, Any] = {}
        if self.requests:
            found = {"lacking": sorted(self.requests)[:NAMED], "lacking_count": len(self.requests)}
        return {**found, "paused": self.paused} if self.paused else found

    def moved(self, moved: Moved) -> Lacking:
        """Of the next trace, in which requests go on."""
        found = Lacking()
        found.add(request for before, _, request, _ in moved if before in self.requests)
        return found
