"""A running recording as its worker controls it: obeys orders between two steps, and shows how it goes.

    attend ─▶ (pause, resume, options, cut) ─▶ begin_step ─▶ ... ─▶ end_step ─▶ shown

The engine's steps are counted here, whether they are recorded or not, so that numbers mean the same for all ranks
and over all traces of a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tracereplay.recorder.costs import Costs
from tracereplay.recorder.live import Moved
from tracereplay.recorder.options import Options
from tracereplay.recorder.orders import Orders
from tracereplay.recorder.status import ENDED, PAUSED, RECORDING, StatusPage

__all__ = ["Control", "Controlled", "Renumber"]

Renumber = Callable[[bool], Moved]  # numbers requests anew; whether those that are known go on under new numbers


class Controlled(Protocol):
    """What orders do something with (`session.Session`)."""

    @property
    def ended(self) -> str | None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def change(self, options: Mapping[str, Any]) -> None: ...
    def cut(self, trace: Path, renumber: Renumber) -> None: ...


class Control:
    """One worker's.

    Args:
        room: the directory that the parent shares with the workers.
        name: of the rank's segments, as ``record-rank0``.
        listener: whose taps are measured.

    Raises:
        OSError: the room is gone.
    """

    def __init__(self, room: Path, name: str, listener: Any) -> None:
        self.room = room
        self.page = StatusPage(room, name)
        self.counters = self.page.counters
        self.costs = Costs(listener, self.counters)
        self.number = -1  # of the engine's step
        self.trouble: str | None = None  # with an order
        self._orders = Orders(room, name.rpartition("-rank")[0])
        self._words: dict[str, Any] = {}

    def catch_up(self, options: Options, trace: Path) -> tuple[Options, Path, bool]:
        """What was ordered before this worker began: its options, its trace, and whether it is paused."""
        paused = False
        for order in self._orders.due(1 << 62):
            match order.get("do"):
                case "pause":
                    paused = True
                case "resume":
                    paused = False
                case "options":
                    options = options.changed(order["options"])
                case "cut":
                    trace = Path(order["trace"])
        return options, trace, paused

    def attend(self, session: Controlled, renumber: Renumber) -> bool:
        """Obeys what is due before the engine's next step.

        Returns:
            Whether requests that run may have had steps that were not recorded.
        """
        self.number += 1
        self.counters.steps = self.number + 1
        before = self.counters.state
        for order in self._orders.due(self.number):
            try:
                self._obey(order, session, renumber)
                self.trouble = None
            except Exception as error:  # an order that fails harms no trace
                self.trouble = f"An order could not be obeyed: {error}"
                self.say(error=self.trouble)
        if before == RECORDING and self.counters.state == RECORDING:
            return False
        if self.counters.state != RECORDING:
            self.counters.unrecorded += 1
            self.page.show()
        return True

    def _obey(self, order: Mapping[str, Any], session: Controlled, renumber: Renumber) -> None:
        match order.get("do"):
            case "pause":
                session.pause()
            case "resume":
                session.resume()
            case "options":
                session.change(order["options"])
            case "cut":
                self.counters.cuts += 1
                session.cut(Path(order["trace"]), renumber)
            case _:
                pass  # "dump" is for the writer process, which outlives its engine (`flight`)

    def state(self, *, paused: bool, ended: bool) -> None:
        """Says whether steps are recorded."""
        self.counters.state = ENDED if ended else PAUSED if paused else RECORDING
        self.page.show()

    def say(self, **words: Any) -> None:
        """Shows words beside the counters; see `status.Status`."""
        self._words |= words
        self.page.say(self._words)

    def close(self) -> None:
        """What was shown last stays to be read."""
        self._orders.close()
        self.page.close()
