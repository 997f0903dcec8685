"""What a session does on orders: pauses, takes other options, goes on in another trace, and says how it goes.

A part of `session.Session`, in a module of its own; it begins and ends segments, and touches no step.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from tracereplay.event import Site
from tracereplay.hooks.census import Census
from tracereplay.recorder.control import Control, Renumber
from tracereplay.recorder.graphs import GraphRecorder
from tracereplay.recorder.handover import Handover
from tracereplay.recorder.lacking import Lacking
from tracereplay.recorder.last_step import LastStep
from tracereplay.recorder.options import Options
from tracereplay.recorder.owed import Last, Owed
from tracereplay.recorder.step import PendingStep
from tracereplay.recorder.writer_client import WriterClient

__all__ = ["PATIENCE", "Obeying"]

LOOKS = 0.05  # seconds between two looks whether an engine idles that owes steps
PATIENCE = 0.2  # seconds that an engine that drops steps waits for the writer in a step that needs many arenas


class Obeying:
    """See the module (`control.Controlled`)."""

    sites: list[Site]
    graphs: GraphRecorder | None
    _options: Options
    _writer: WriterClient | None
    _handover: Handover | None
    _census: Census | None
    _errors: dict[str, int]
    _silent: set[int]
    _left_out: dict[str, set[int]]
    untapped: Mapping[str, Container[int]]
    _wanted: frozenset[int]
    _censuses: int
    _steps: int
    _dropped: int
    _passed: int
    _weight_updates: int
    _ended: str | None
    _turn: AbstractContextManager[Any]  # see `Session.end_between_steps`

    def __init__(self) -> None:
        self._control: Control | None = None  # of a recording that takes orders while it runs
        self._resting = False  # paused, by an order
        self._segment: tuple[Path, dict[str, Any]] = (Path(), {})  # its path and what it says of this process
        self._model: torch.nn.Module | None = None  # of which each trace has a census
        self._lacking = Lacking()
        self._finished: list[int] = []  # requests that ended since the last step that was recorded
        self._owed = Owed()
        self._payer: threading.Thread | None = None  # while something may be owed
        self._changed: list[str] = []  # what orders have changed since, in sentences
        self._last: LastStep | None = None  # of a recording that is told to end while its engine goes on
        self._over = False  # whether the last step has been recorded
        self._begun = 0  # steps of the engine in the pass
        self._under_way = False  # whether one is, from before its rows are numbered

    # What the session has.
    def _open(self, path: Path, meta: Mapping[str, Any]) -> None:
        raise NotImplementedError

    @property
    def recording(self) -> bool:
        raise NotImplementedError

    def _give_up_step(self) -> None:
        raise NotImplementedError

    def _watchable(self) -> frozenset[int]:
        raise NotImplementedError

    def _new_census(self, model: torch.nn.Module) -> Census | None:
        raise NotImplementedError

    def _summary(self) -> dict[str, Any]:
        raise NotImplementedError

    def _guarded(self) -> AbstractContextManager[None]:
        raise NotImplementedError

    def failed(self, error: BaseException) -> None:
        raise NotImplementedError

    def attend(self, renumber: Renumber) -> None:
        """Obeys the orders that came; before each step of the engine, whose rows are not numbered yet."""
        with self._turn:
            if self._last is not None and not self._last.may_begin(self._begun):
                self._over = True
            self._begun += 1
            control = self._control
            if control is not None and not self._over:
                self._give_up_step()
                with self._guarded():
                    control.attend(self, renumber)
                if self._resting:
                    self._lacking.paused += 1
            self._under_way = self.recording

    def finished(self, requests: Sequence[int]) -> None:
        """Requests have ended."""
        if self._control is not None and self._ended is None:
            self._finished += requests
        self._lacking.ended(requests)

    def lacks(self, requests: Iterable[int]) -> None:
        """Requests have steps that are not recorded."""
        if not self._over:  # those that came after the recording are not missing in it
            self._lacking.add(requests)

    @property
    def ended(self) -> str | None:
        return self._ended

    def pause(self) -> None:
        self._resting = True
        self._show()

    def resume(self) -> None:
        self._resting = False
        self._show()

    def change(self, options: Mapping[str, Any]) -> None:
        """Takes other options from the next step on."""
        before, changed = self._options, self._options.changed(options)
        if self.graphs is not None:
            self.graphs.refuse(changed, None)
        self._options = changed
        self._left_out = changed.left_out(self.sites)
        self._wanted = self._watchable()
        if (before.sites, before.sides) != (changed.sites, changed.sides):
            told = [text for text in changed.told() if text not in before.told()]
            told = told or ["From this step on, inputs and outputs of every operator are recorded."]
            told += self._lost()
            self._changed = [text.replace("were recorded", "are recorded from this step on") for text in told]

    def _lost(self) -> list[str]:
        """Of what is asked for now, what this engine has no taps for, in sentences."""
        lost = {
            site.slot
            for side, without in self.untapped.items()
            for site in self.sites
            if site.slot in without and site.slot not in self._left_out[side]
        }
        if not lost:
            return []
        return [
            f"Not all of what {len(lost)} operators compute is recorded: the engine was compiled, or captured "
            "its CUDA graphs, for other sites or sides. Start it again with these."
        ]

    def cut(self, trace: Path, renumber: Renumber) -> None:
        """Ends the segment, and begins the next in another trace, with the requests that are live."""
        writer, handover, control = self._writer, self._handover, self._control
        if writer is None or handover is None or control is None:
            return
        before, meta = self._segment
        path = trace / before.name
        meta = {**meta, "continues": {"trace": before.parent.name, "step": control.number}}
        with self._guarded():
            handover.drain(wait=True)
        if (last := self._what_is_owed(control.number - 1)) is not None:
            with self._guarded():
                self._owed.pay_at_last(last, writer, handover, PATIENCE)
        whole = not self._errors and not writer.gone
        moved = renumber(self._ended is None and not writer.gone and not writer.errors)
        summary = self._summary()
        self._segment = path, meta
        self._errors.clear()
        self._silent.clear()
        self._steps = self._dropped = 0
        self._ended = None
        self._finished.clear()
        self._lacking = self._lacking.moved(moved)
        self._owed.move(moved)
        if self._model is not None:
            self._census, self._censuses = self._new_census(self._model), 0  # a trace has its own
        if writer.gone:
            with self._guarded():
                handover.close()
            writer.close(summary, whole=False)
            self._open(path, meta)
        else:
            writer.cut(summary, path, meta, whole=whole, moved=moved, number=control.number)
        self._show()

    def _take_back(self, step: PendingStep) -> None:
        """What a step had beside operators is said again with the next one, since it is given up."""
        self._owed.take_back(step)
        self._lacking.take_back()
        self._finished = [*step.finished, *self._finished]
        self._passed += 0 if step.company is None else step.company[2]

    def _pay_when_idle(self) -> None:
        """Has what is owed written when the writer has caught up, though no step may come: a trigger makes a trace
        of what a ring has then, and an idle engine can be killed."""
        if self._payer is None:
            self._payer = threading.Thread(target=self._watch_for_idleness, name="tracereplay-owed", daemon=True)
            self._payer.start()

    def _watch_for_idleness(self) -> None:
        number = -1
        while True:
            time.sleep(LOOKS)
            with self._turn:
                writer, handover, control = self._writer, self._handover, self._control
                over = self._ended is not None or not (self._under_way or self._owed)
                if over or writer is None or handover is None or control is None:
                    self._payer = None
                    return
                # Within a step its tokens may still come; and one that follows at once pays for all before it.
                if not self._under_way and control.number == number:
                    with self._guarded():
                        self._pay_if_possible(number, writer, handover)
                number = control.number

    def _pay_if_possible(self, number: int, writer: WriterClient, handover: Handover) -> None:
        handover.drain(wait=True)
        arena = handover.take(wait=False)
        if arena is not None:
            self._owed.pay_into(arena, self._without_rows(number), writer, handover)

    def _what_is_owed(self, number: int) -> Last | None:
        """See `_without_rows`; None: nothing is owed."""
        owes = self._control is not None and self._ended is None and bool(self._owed)
        return self._without_rows(number) if owes else None

    def _without_rows(self, number: int) -> Last:
        """A step for what the trace must have of steps that were left out, since no other comes."""
        lacking, notes = self._lacks()
        return Last(number, self._weight_updates, notes, lacking, self._dropped)

    def _lacks(self) -> tuple[list[int], list[str]]:
        """Requests that lack steps and were not told yet: by number for a ring, whose traces have their own,
        or in words."""
        return (self._lacking.tell(), []) if self._options.ring is not None else ([], self._lacking.notes())

    def _show(self) -> None:
        """Says how it goes: after what happens seldom, in words too."""
        control = self._control  # which is gone when another thread ends the recording meanwhile
        if control is not None:
            self._show_on(control)

    def _show_on(self, control: Control) -> None:
        error, trace = next(reversed(self._errors), control.trouble), str(self._segment[0].parent)
        control.say(pid=os.getpid(), trace=trace, ended=self._ended, error=error)
        self._count(control)

    def _count(self, control: Control) -> None:
        """Shows the counters, with each step."""
        counters, writer = control.counters, self._writer
        if writer is not None:
            counters.trace_bytes, counters.trace_steps = writer.of_last, self._steps
            counters.bytes = writer.written
        control.state(paused=self._resting, ended=self._ended is not None)
