"""One process's recording: collects the taps' tensors into calls and steps, and hands steps to the writer process.

    begin_pass ─▶ [ begin_step ─▶ feed/observe ... ─▶ end_step ]* ─▶ end_pass

Outside a step (profile runs, warm-up), taps only cost a comparison. Nothing here raises into the engine: errors
are counted and noted in the trace, and the generation goes on.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from tracereplay.device import Device
from tracereplay.event import Request, RowKey, RowMap, Site
from tracereplay.hooks.census import Census
from tracereplay.hooks.taps import listen
from tracereplay.recorder.choosing import Choice
from tracereplay.recorder.graphs import GraphRecorder
from tracereplay.recorder.handover import Handover
from tracereplay.recorder.kernels import KernelRecorder
from tracereplay.recorder.lifetime import Lifetime
from tracereplay.recorder.obeying import PATIENCE
from tracereplay.recorder.options import Options
from tracereplay.recorder.replacement import Replacement
from tracereplay.recorder.reports import Reports
from tracereplay.recorder.rows_first import RowsFirst
from tracereplay.recorder.selection import selection_of
from tracereplay.recorder.step import Behind, OpenCall, PendingStep
from tracereplay.recorder.tapping import Tapping
from tracereplay.recorder.triggers import ERROR, Ended, Fired
from tracereplay.recorder.writer_client import WriterClient
from tracereplay.recorder.writer_handle import WriterGone, WriterHandle
from tracereplay.recorder.written import WrittenInputs

__all__ = ["Session"]


CENSUS_STEPS = 2  # of a pass: mostly a prefill and a step that decodes


class Session(Tapping, Lifetime):
    """The recorder of one process; also the taps' listener.

    Args:
        rank: this process's rank among the engine's workers.
        device: where the model lives.
    """

    def __init__(self, rank: int, device: Device) -> None:
        super().__init__()
        self.rank = rank
        self.sites: list[Site] = []
        self.rows_first = RowsFirst()
        self.parts: frozenset[int] = frozenset()  # slots of operators within others, which need not run
        self.untapped: Mapping[str, Container[int]] = {}  # by side, slots that a compiled or captured engine lacks
        self.remarks: Sequence[str] = ()  # what every recording of this engine must say of itself
        self.compiled: Sequence[torch.nn.Module] = ()  # those of which no Python code runs in a step
        self.device = device
        self.graphs: GraphRecorder | None = None  # of an engine that captures CUDA graphs
        self._options = Options()
        self._process: WriterHandle | None = None  # serves all passes
        self._writer: WriterClient | None = None
        self._replacement: Replacement | None = None
        self._step: PendingStep | None = None
        self._handover: Handover | None = None  # None exactly when the writer is
        self._steps = self._dropped = self._weight_updates = 0
        self._engine_steps = 0  # of the pass
        self._turned: set[tuple[int, str, int]] = set()  # see `Selection`
        self._passed = 0  # of them, those since the last recorded one
        self._ended: str | None = None
        self._rows: dict[int, tuple[RowMap, RowMap]] = {}
        self._left_out: dict[str, set[int]] = {"in": set(), "out": set()}
        self._errors: dict[str, int] = {}
        self._silent: set[int] = set()
        self._written = WrittenInputs()
        self._wanted: frozenset[int] = frozenset()
        self._reports: Reports | None = None  # to a ring, if there is one
        self._flagged: frozenset[int] = frozenset()  # see `Reports`
        self._kernels: KernelRecorder | None = None
        self._census: Census | None = None  # as long as steps are left of which one is taken
        self._censuses = 0  # that were taken in the pass
        self.watched: Container[int] = frozenset()
        self.scope: Callable[[OpenCall | None], AbstractContextManager[None]] | None = None
        self._dropping = False  # whether the engine's step is one that was left out
        self._turn = threading.RLock()  # held where a step begins and ends; see `end_between_steps`
        self._closing = threading.RLock()  # held by who ends a pass, which takes longer than a step may wait

    @property
    def choice(self) -> Choice:
        """Which requests are recorded."""
        return self._options.choice

    def weights_updated(self) -> None:
        """Counts an update of the engine's weights."""
        self._weight_updates += 1

    # -- a step -----------------------------------------------------------------------------------------

    def begin_step(self, rows: RowMap, others: int = 0) -> None:
        """Begins a step.

        Args:
            rows: of the model's forward; those of requests that were not chosen have the request -1.
            others: requests that were not chosen in it. A step without any other is none of the recording's.
        """
        with self._turn:
            self._begin_step(rows, others)

    def _begin_step(self, rows: RowMap, others: int) -> None:
        writer, handover = self._writer, self._handover
        if writer is None or handover is None or self._ended is not None:
            return
        listen(self)  # another engine may have been built in this process
        self._give_up_step()
        choice, at = self._options.choice, self._engine_steps
        self._engine_steps += 1
        control, self._dropping = self._control, False
        if others and not (rows[:, 0] >= 0).any():
            self._passed += 1
            return
        if control is not None:
            control.costs.begin()
        if self._options.max_steps is not None and self._steps >= self._options.max_steps:
            self._end("max_steps")
            return
        self._rows.clear()
        try:
            arena = handover.take(wait=self._waits())
            failed = control is not None and bool(writer.errors)
            if writer.spent or failed:
                self._errors.update(writer.errors)
                self._end("failed" if failed else "max_bytes")
                writer.give_back([arena] if arena is not None else [])
            elif arena is None:
                self._drop(rows)
            else:
                self._step = step = PendingStep(self._number, rows, arena, writer, self._weight_updates, handover)
                step.dropped = self._dropped
                step.patience = None if self._waits() else PATIENCE
                step.feeds = self._replacement is not None and self._replacement.feeds
                step.notes += self._told(writer) if self._steps == 0 else self._changed
                step.lacking, notes = self._lacks()
                step.notes += notes
                step.finished, self._finished = self._finished, []
                self._changed = []
                self._owed.pay(step)
                if others or self._passed:
                    step.company = int((rows[:, 0] < 0).sum()), others, self._passed
                    self._passed = 0
                step.selection = selection_of(choice, rows, self.device, self._turned)
                nothing = step.selection is not None and not len(step.selection.of(rows))
                step.bare = nothing or at % choice.every != 0
                if control is not None:
                    control.costs.begun()
                if step.bare:
                    return
                self.watched = self._wanted
                if self._census is not None:
                    self._begin_census(self._census)
                if self._kernels is not None:
                    self._kernels.begin_step(step)
        except Exception as error:
            self.failed(error)

    @property
    def _number(self) -> int:
        """Of the engine's step."""
        control = self._control
        return self._steps + self._dropped if control is None else control.number

    def _waits(self) -> bool:
        """Whether the engine waits for the writer."""
        return self._options.when_behind == "block" or self._replacement is not None

    def _end(self, why: str) -> None:
        """Records no more steps, until an order begins another trace."""
        self._ended = why
        self._show()

    def _drop(self, rows: RowMap) -> None:
        """Leaves a step out."""
        self._dropped += 1
        if self._control is not None:
            self._control.counters.dropped += 1
            self._dropping = True
            self._count(self._control)
            self._lacking.add(set(rows[:, 0].tolist()))
            self._pay_when_idle()

    def _begin_census(self, census: Census) -> None:
        """All taps say that they are called, those too of which nothing is kept."""
        self.watched = frozenset(site.slot for site in self.sites)
        with self._guarded():
            census.begin()

    def _end_census(self, step: PendingStep) -> None:
        census = self._census
        if census is None or step.bare:
            return
        with self._guarded():
            census.end()
            step.census = census.found()
        self._censuses += 1
        if self._censuses >= CENSUS_STEPS:
            self._census = None

    def _told(self, writer: WriterClient) -> list[str]:
        trouble = sorted({arena.trouble for arena in writer.arenas if arena.trouble})
        slowed = [f"{text}, so recording slowed the engine." for text in trouble]
        graphs = [] if self.graphs is None else self.graphs.told()
        return [*self._options.told(), *self.remarks, *slowed, *graphs]

    def set_rows(self, slot: int, rows_in: RowMap, rows_out: RowMap) -> None:
        """Sets the rows of ``slot``'s next calls, where they differ from those of the model's forward."""
        self._rows[slot] = (rows_in, rows_out)

    def sampled(
        self, keys: list[RowKey], tokens: torch.Tensor, choices: torch.Tensor, logprobs: torch.Tensor | None
    ) -> None:
        """Records the tokens (int64), the sampler's choices (int64) and logprobs (float32) at ``keys``."""
        if self._step is not None:
            with self._guarded():
                self._step.add_sampled(keys, tokens, choices, logprobs)
                return
        if self._dropping:
            self._owed.keep(keys, tokens, choices, logprobs)

    def requested(self, requests: Sequence[Request]) -> bool:
        """Records requests that begin in this step, if no workload has them; returns whether they need not be said
        again, with the next."""
        if self._step is None:
            if self._dropping:
                self._owed.begun(requests)
            return self._dropping or self._ended is not None
        self._step.requests.extend(requests)
        return True

    # -- a flight recorder ------------------------------------------------------------------------------

    def sequences_ended(self, ends: Sequence[Ended]) -> None:
        """Says which sequences have ended, so that a ring need not know of them any more."""
        reports = self._reports  # which is gone when another thread ends the recording meanwhile
        if reports is not None:
            reports.ended(ends)

    def trigger(self, kind: str, request: str | None, detail: str, number: tuple[int, int] = (-1, -1)) -> None:
        """Something happened that may make a trace of the ring.

        Args:
            kind: see `triggers.Fired`.
            request: the engine's name of the request that it happened to.
            detail: more of it, in words.
            number: that request's, and its sequence's.
        """
        reports = self._reports
        if reports is not None:
            words = detail if request is None else f"{detail} (request {request})"
            reports.fired(Fired(kind, words, *number, step=self._number))

    def dump(self, trace: Path, trigger: Mapping[str, Any], after: int) -> None:
        """Makes a trace of the ring and of the ``after`` steps that follow; see `flight.FlightRecorder.dump`."""
        reports = self._reports
        if reports is not None:
            reports.dump(trace, trigger, after)

    def broke(self, error: BaseException) -> None:
        """The engine raised ``error`` in the step: what the step has so far is kept, and says so."""
        reports = self._reports
        if reports is None:
            with self._turn:  # else it would be under way until the next one begins
                self._give_up_step()
                self._under_way = False
            return
        words = type(error).__name__ if self._options.withhold else f"{type(error).__name__}: {error}"[:500]
        fired = Fired(ERROR, words, step=self._number)
        if self._step is not None:
            words = f"The engine raised {fired.detail} in step {fired.step}, which is not whole."
            self._step.notes.append(words)
            self._silent.update(site.slot for site in self.sites)  # the rest of its operators did not run
        self.end_step()
        reports.fired(fired)

    def end_step(self) -> None:
        """Hands the step to the writer."""
        with self._turn:
            self._under_way = False
            self._end_step()

    def _end_step(self) -> None:
        step, self._step = self._step, None
        self.watched = frozenset()
        handover = self._handover
        if step is None or handover is None:
            return
        control = self._control
        since = 0 if control is None else control.costs.end()
        self._end_census(step)
        self._note_silence(step)
        if self._kernels is not None and not step.bare:
            self._end_kernels(step, self._kernels)
        self._steps += 1
        with self._guarded():
            handover.add(step)
        if control is not None:
            control.counters.recorded += 1
            control.costs.ended(since)
            self._count(control)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What runs in this context is no part of the step, though it may call tapped modules."""
        with self._turn:
            step, self._step = self._step, None
            watched, self.watched = self.watched, frozenset()
            try:
                yield
            finally:
                self._step, self.watched = step, watched

    def _end_kernels(self, step: PendingStep, kernels: KernelRecorder) -> None:
        with self._guarded():
            sampler = {site.slot for site in self.sites if site.role == "sampler"}
            compiled = step.compiled() - sampler
            if compiled:
                kernels.compiled_region(compiled)
            step.kernels = kernels.end_step()

    def _give_up_step(self) -> None:
        """Abandons a step that the engine did not end, so that its arenas are not lost."""
        step, self._step = self._step, None
        self.watched = frozenset()
        if self._census is not None:
            self._census.end()
        if step is not None and self._handover is not None:
            with self._guarded():
                self._handover.give_up(step)

    def _note_silence(self, step: PendingStep) -> None:
        """Notes sites that did not run, once each, so that a missing operator does not go unnoticed."""
        if step.bare:
            return
        fired = step.slots() | step.passed | (self._left_out["in"] & self._left_out["out"])
        for site in self.sites:
            if site.slot not in fired and site.slot not in self._silent and site.slot not in self.parts:
                self._silent.add(site.slot)
                step.notes.append(f"{site.name} did not run in step {step.number}.")

    # -- failures ---------------------------------------------------------------------------------------

    def failed(self, error: BaseException) -> None:
        """Counts an error; the engine goes on."""
        if isinstance(error, Behind):
            step = self._step
            self._give_up_step()
            if step is not None:
                self._take_back(step)
                self._drop(step.rows)
            return
        if isinstance(error, WriterGone):
            text = str(error)
            self._end("the writer process ended")
        elif isinstance(error, OSError) and error.errno is not None:
            text = f"{os.strerror(error.errno)} (while writing the trace)"
        else:
            text = f"{type(error).__name__}: {error}"
        self._errors[text] = self._errors.get(text, 0) + 1
        self._show()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failed(error)
