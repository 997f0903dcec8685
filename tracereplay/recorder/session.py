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
from tracereplay.hooks.graphs import traced
from tracereplay.hooks.taps import listen
from tracereplay.recorder.choosing import Choice
from tracereplay.recorder.control import Control
from tracereplay.recorder.graphs import GraphRecorder
from tracereplay.recorder.handover import Handover
from tracereplay.recorder.kernels import KernelRecorder
from tracereplay.recorder.lacking import Lacking
from tracereplay.recorder.obeying import PATIENCE, Obeying
from tracereplay.recorder.options import KERNEL, Options
from tracereplay.recorder.owed import Owed
from tracereplay.recorder.replacement import Replacement
from tracereplay.recorder.reports import Reports
from tracereplay.recorder.rows_first import RowsFirst
from tracereplay.recorder.selection import selection_of
from tracereplay.recorder.step import Behind, OpenCall, PendingStep
from tracereplay.recorder.triggers import ERROR, Ended, Fired
from tracereplay.recorder.writer_client import WriterClient
from tracereplay.recorder.writer_handle import WriterGone, WriterHandle
from tracereplay.recorder.written import WrittenInputs

__all__ = ["Session"]


NOT_KEPT = OpenCall(-1, 0, [], {}, {}, {})  # a call with none of the rows that are recorded
SILENCE = 20.0  # seconds that a writer may be silent when such an engine ends: a disk may hang for ever
LAST = 5.0  # seconds that it waits then to say what steps that were left out had
CENSUS_STEPS = 2  # of a pass: mostly a prefill and a step that decodes


class Session(Obeying):
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

    # -- a pass -----------------------------------------------------------------------------------------

    def begin_pass(
        self, path: Path, meta: Mapping[str, Any], replacement: Replacement | None = None,
        options: Options | None = None, model: torch.nn.Module | None = None, control: Control | None = None,
        paused: bool = False,
    ) -> None:  # fmt: skip
        """Starts recording into a new segment.

        Args:
            path: of the segment.
            meta: plain data about this process.
            replacement: feeds recorded values; None records only.
            options: see there.
            model: of which a census is taken, and whose parameters and buffers kernels take by name.
            control: by which it takes orders while it runs.
            paused: whether it begins with a pause.

        Raises:
            OSError, WriterGone: the segment or its writer cannot be created.
            Unsupported: it cannot be recorded inside CUDA graphs.
        """
        self._options = options or Options()
        if self.graphs is not None:
            self.graphs.refuse(self._options, replacement)
        self._errors.clear()
        self._silent.clear()
        self._steps = self._dropped = self._weight_updates = self._engine_steps = self._passed = 0
        self._ended = None
        self._control, self._segment = control, (path, dict(meta))
        self._resting, self._lacking, self._owed = paused, Lacking(), Owed()
        self._open(path, meta)
        self._show()
        self._replacement = replacement
        self._left_out = self._options.left_out(self.sites)
        self._wanted = self._watchable()
        self._model = model if replacement is None else None
        if self._model is not None:
            self._census, self._censuses = self._new_census(self._model), 0
        if self._options.level == KERNEL and model is not None:
            self._kernels = KernelRecorder(model, check_writes=self._options.check_writes, failed=self.failed)
            self.scope = self._watch_kernels

    def _open(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Opens a segment, or a ring, in a writer process that has none."""
        ring = None if self._options.ring is None else self._options
        self._writer = WriterClient(
            self.prepare(), path, meta, codec_id=self._options.codec, max_bytes=self._options.max_bytes,
            recipients=self._options.recipients, withhold=self._options.withhold, live=self._control is not None,
            ring=ring, room=None if self._control is None else self._control.room,
        )  # fmt: skip
        self._errors.update(self._writer.errors)
        self._handover = Handover(
            self._writer, self._options.in_flight, idle=self.device.asynchronous, failed=self.failed
        )
        self._reports = (
            None if ring is None else Reports(ring, self.sites, self._writer, self._handover, self._guarded)
        )
        self._flagged = frozenset() if self._reports is None else self._reports.flagged
        self._writer.sites(self.sites)

    def prepare(self) -> WriterHandle:
        """Starts a writer process unless there is one that is ready; the next pass need not wait for it then.

        Raises:
            OSError: it cannot be started.
        """
        if self._process is None or not self._process.ready:
            if self._process is not None:
                self._process.close()
            self._process = WriterHandle(self.device)
        return self._process

    def _new_census(self, model: torch.nn.Module) -> Census | None:
        """None: a compiler's graph could not be read, or CUDA graphs hide what computes."""
        if self.graphs is not None:
            return None
        graphs = {module: traced(module) for module in self.compiled}
        known = {module: graph for module, graph in graphs.items() if graph is not None}
        return Census(model, self.sites, known) if len(known) == len(graphs) else None

    def end_pass(self) -> dict[str, Any]:
        """Waits for the writer and closes the segment; returns a summary with errors, if any."""
        with self._turn:
            return self._end_pass()

    def _end_pass(self) -> dict[str, Any]:
        writer, handover, patience = self._writer, self._handover, None if self._waits() else SILENCE
        self._kernels = self._census = self.scope = self._replacement = self._model = None
        if writer is not None and handover is not None:
            self._give_up_step()
            self._pay_at_last(self._number, LAST)
            with self._guarded():
                handover.close()
            self._writer = self._handover = self._reports = None
            with self._guarded():
                writer.close(self._summary(), whole=not self._errors, patience=patience)
            self._errors.update(writer.errors)
            if self._control is not None:
                self._ended = self._ended or "end"
                self._show()
                self._control.close()
                self._control = None
        return {
            "steps": self._steps, "errors": dict(self._errors), "dropped": self._dropped, "ended": self._ended,
        }  # fmt: skip

    def end_between_steps(self) -> bool:
        """Ends the pass from a thread of its own, unless a step is under way; returns whether it did."""
        with self._turn:
            if self._step is not None:
                return False
            self._end_pass()
            return True

    def _watchable(self) -> frozenset[int]:
        """The sites of which something is kept, or may be replaced."""
        nowhere, given = self._left_out["in"] & self._left_out["out"], self._replacement
        taken = {slot for slot in nowhere if given is not None and given.takes(slot)}
        return frozenset(site.slot for site in self.sites) - (nowhere - taken - self._flagged)

    @property
    def recording(self) -> bool:
        """Whether a pass is being recorded, and not paused."""
        return self._writer is not None and not self._resting

    def _summary(self) -> dict[str, Any]:
        """For the end mark."""
        counts = {"ended": self._ended, "dropped": self._dropped, "weights": self._weight_updates}
        return {**counts, **self._lacking.summary()}

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
        control, self._dropping, self._between = self._control, False, False
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
        return self._steps + self._dropped if self._control is None else self._control.number

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
        if self._reports is not None:
            self._reports.ended(ends)

    def trigger(self, kind: str, request: str | None, detail: str, number: tuple[int, int] = (-1, -1)) -> None:
        """Something happened that may make a trace of the ring.

        Args:
            kind: see `triggers.Fired`.
            request: the engine's name of the request that it happened to.
            detail: more of it, in words.
            number: that request's, and its sequence's.
        """
        if self._reports is not None:
            words = detail if request is None else f"{detail} (request {request})"
            self._reports.fired(Fired(kind, words, *number, step=self._number))

    def dump(self, trace: Path, trigger: Mapping[str, Any], after: int) -> None:
        """Makes a trace of the ring and of the ``after`` steps that follow; see `flight.FlightRecorder.dump`."""
        if self._reports is not None:
            self._reports.dump(trace, trigger, after)

    def broke(self, error: BaseException) -> None:
        """The engine raised ``error`` in the step: what the step has so far is kept, and says so."""
        reports = self._reports  # which is gone when another thread ends the recording meanwhile
        if reports is None:
            with self._turn:  # else it would be under way until the next one begins
                self._give_up_step()
                self._between = True
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
            self._end_step()

    def _end_step(self) -> None:
        step, self._step, self._between = self._step, None, True
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

    # -- taps -------------------------------------------------------------------------------------------

    def arrived(self, slot: int, inputs: list[torch.Tensor]) -> tuple[Any, list[torch.Tensor]]:
        """Records a call's inputs and returns the golden ones, in eager mode."""
        step = self._step
        if step is None:
            return self._captured(slot, inputs)
        if self._census is not None:
            self._census.entered()
        elif slot in self._flagged and slot in self._left_out["in"] and slot in self._left_out["out"]:
            return slot, inputs
        rows = self.rows_of(slot)
        if self._leaves(step, slot, rows):
            return NOT_KEPT, inputs
        call = step.begin_call(slot, rows)
        rows_first = self.rows_first.all(slot, "in", inputs)
        if slot not in self._left_out["in"]:
            for index, x in enumerate(self._real_rows(step, slot, "in", rows_first)):
                try:
                    call.inputs[index] = step.copy(step.kept(x, rows[0], slot, "in", index), arrived=True, like=x)
                except Exception as error:
                    self.failed(error)
        if self._replacement is None:
            return call, inputs
        count = len(inputs)
        given = [self._golden(slot, "in", i, call.rows[0], x, count) for i, x in enumerate(rows_first)]
        for i, golden in enumerate(given):
            if golden is not None and call.fed is not None:
                stands_for = self._replacement.stands_for(slot, i, count)
                call.fed.extend(stands_for)
                if len(stands_for) > 1:
                    # Golden's norm hands the sum of x and residual on. Here the caller keeps it, so its own must
                    # be golden's too, or the rounding of one layer adds up to that of the next.
                    with self._guarded():
                        rows_first[i].copy_(golden)
        return call, [
            x if golden is None else golden.reshape(x.shape) for x, golden in zip(inputs, given, strict=True)
        ]

    def returned(self, call: Any, taken: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        """Records a call's outputs and changed inputs, and writes golden outputs over them, in eager mode."""
        step = self._step
        if call is None:
            return
        if step is None:
            if self.graphs is not None:
                sides = ("in", taken), ("out", outputs)
                self.graphs.returned(call, *(self.rows_first.all(call, side, tensors) for side, tensors in sides))
            return
        if self._census is not None:
            self._census.left()
        if call is NOT_KEPT:
            return
        slot: int = call if isinstance(call, int) else call.slot
        if self._reports is not None and slot in self._flagged:
            self._reports.flag(step, outputs[0], self.rows_of(slot)[1])
        if isinstance(call, int):
            return
        taken, outputs = self.rows_first.all(slot, "in", taken), self.rows_first.all(slot, "out", outputs)
        if self._replacement is None and self._written.may_write(slot):
            with self._guarded():
                real = self._real_rows(step, slot, "in", taken)
                self._written.keep(
                    step, call, real, outputs, lambda i, x: step.kept(x, call.rows[0], slot, "in", i)
                )
        if slot in self._rows:
            call.rows[1] = self._rows[slot][1]
        if slot not in self._left_out["out"]:
            for index, x in enumerate(self._real_rows(step, slot, "out", outputs)):
                try:
                    call.outputs[index] = step.copy(step.kept(x, call.rows[1], slot, "out", index), like=x)
                except Exception as error:
                    self.failed(error)
        if self._replacement is not None:
            for index, x in enumerate(outputs):
                self._lay_over(slot, index, call.rows[1], x)

    def _leaves(self, step: PendingStep, slot: int, rows: tuple[RowMap, RowMap]) -> bool:
        """Whether a call with these rows has none that is recorded."""
        if step.selection is None or any(len(step.selection.of(side)) for side in rows):
            return False
        step.passed.add(slot)
        return True

    def _real_rows(
        self, step: PendingStep, slot: int, side: str, tensors: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """``tensors`` without the rows that graphs padded, which operators between graphs are given, too."""
        if self.graphs is None or step.frame is None or slot in self._rows:
            return tensors
        graphs, rows = self.graphs, len(step.rows)
        return [graphs.without_padding(step, (slot, side, i), x, rows) for i, x in enumerate(tensors)]

    def _captured(self, slot: int, inputs: list[torch.Tensor]) -> tuple[Any, list[torch.Tensor]]:
        """A call while no step is recorded: it may be captured into a graph."""
        if self.graphs is None or not self.graphs.listening:
            return None, inputs
        given = self.graphs.arrived(slot, self.rows_first.all(slot, "in", inputs))
        return slot, [x if new is None else new.reshape(x.shape) for x, new in zip(inputs, given, strict=True)]

    def feed(self, x: torch.Tensor, slot: int, index: int) -> torch.Tensor | None:
        """Records one input and returns the golden one."""
        step = self._step
        shape, x = x.shape, self.rows_first.one(slot, "in", index, x)
        if step is None:
            if self.graphs is None or not self.graphs.listening:
                return None
            found = self.graphs.feed(slot, index, x)
            return None if found is None else found.reshape(shape)
        if step.bare:
            return None
        rows = self.rows_of(slot)
        if slot not in self._left_out["in"] and not self._leaves(step, slot, rows):
            with self._guarded():
                step.add(x, slot, "in", index, rows)
        given = self._golden(slot, "in", index, rows[0], x)
        if given is None or self._replacement is None:
            return None
        call = step.latest.get(slot)
        if call is not None and call.fed is not None:
            call.fed.extend(self._replacement.stands_for(slot, index, None))
        return given.reshape(shape)

    def observe(self, x: torch.Tensor, slot: int, index: int, *, replace: bool = True) -> None:
        """Records one output and writes the golden one over it."""
        step = self._step
        x = self.rows_first.one(slot, "out", index, x)
        if step is None:
            if self.graphs is not None and self.graphs.listening:
                self.graphs.observe(slot, index, x)
            return
        if step.bare:
            return
        rows = self.rows_of(slot)
        if self._reports is not None and slot in self._flagged and index == 0:
            self._reports.flag(step, x, rows[1])
        if slot not in self._left_out["out"] and not self._leaves(step, slot, rows):
            with self._guarded():
                step.add(x, slot, "out", index, rows)
        if replace:
            self._lay_over(slot, index, rows[1], x)

    def _golden(
        self, slot: int, side: str, index: int, rows: RowMap, x: torch.Tensor, inputs: int | None = None
    ) -> torch.Tensor | None:
        try:
            replacement = self.replacement
            if replacement is not None and x.is_floating_point():
                return replacement.rows(slot, side, index, rows, x, inputs)
        except Exception as error:
            self.failed(error)
        return None

    def _lay_over(self, slot: int, index: int, rows: RowMap, x: torch.Tensor) -> None:
        given = self._golden(slot, "out", index, rows, x)
        if given is not None:
            with self._guarded():
                x.copy_(given)
                if self._step is not None:
                    self._step.overwritten(x)

    # -- CUDA graphs (`graphs.Host`) --------------------------------------------------------------------

    @contextlib.contextmanager
    def forward(self, rows: int) -> Iterator[None]:
        """One run of the model's forward over so many rows, in a step or outside of one."""
        if self.graphs is None or self._step is not None:
            yield
            return
        with self.graphs.forward(rows):
            if self.graphs.watching:
                self.watched, self.scope = frozenset(site.slot for site in self.sites), self.graphs.scope
            try:
                yield
            finally:
                self.watched, self.scope = frozenset(), None

    @property
    def pending(self) -> PendingStep | None:
        step = self._step
        return None if step is None or step.bare else step

    @property
    def replacement(self) -> Replacement | None:
        """What the step feeds; whoever asks first has told the step's rows, those of logits and sampler too."""
        step, found = self._step, self._replacement
        if found is not None and step is not None and not step.rows_told:
            step.rows_told = True
            with self._guarded():
                found.rows_for(self.rows_of)
        return found

    def rows_of(self, slot: int) -> tuple[RowMap, RowMap]:
        assert self._step is not None
        return self._rows.get(slot) or self._step.both

    def keeps(self, slot: int, side: str) -> bool:
        return slot not in self._left_out[side]

    # -- kernels ----------------------------------------------------------------------------------------

    def watch_kernels(self, slot: int) -> AbstractContextManager[Any]:
        """Records the kernels of an operator that has no taps (the sampler); its inputs have been fed."""
        if self._step is None or self._kernels is None or self._step.bare:
            return contextlib.nullcontext()
        call = self._step.latest.get(slot)
        return self._kernels.watch(slot, 0 if call is None else call.number)

    def _watch_kernels(self, call: OpenCall | None) -> AbstractContextManager[None]:
        if call is None or call is NOT_KEPT or self._kernels is None:
            return contextlib.nullcontext()
        return self._kernels.watch(call.slot, call.number)

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
