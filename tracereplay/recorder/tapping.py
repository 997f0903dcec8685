"""What a session does with what taps see in a step: records it, and gives golden rows in its place.

    feed / arrived ─▶ the operator's inputs, golden ones from then on
    observe / returned ─▶ its outputs, over which golden ones are written

A part of `session.Session`, in a module of its own: all of this runs inside of the engine's step, once for each
operator or tensor. It begins and ends no step, and hands nothing to the writer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from tracereplay.event import RowMap, Site
from tracereplay.hooks.census import Census
from tracereplay.recorder.graphs import GraphRecorder
from tracereplay.recorder.kernels import KernelRecorder
from tracereplay.recorder.replacement import Replacement
from tracereplay.recorder.reports import Reports
from tracereplay.recorder.rows_first import RowsFirst
from tracereplay.recorder.step import OpenCall, PendingStep
from tracereplay.recorder.written import WrittenInputs

__all__ = ["Tapping"]

NOT_KEPT = OpenCall(-1, 0, [], {}, {}, {})  # a call with none of the rows that are recorded


class Tapping:
    """See the module (`hooks.taps.Listener`, `graphs.Host`)."""

    sites: list[Site]
    rows_first: RowsFirst
    graphs: GraphRecorder | None
    watched: Container[int]
    scope: Callable[[OpenCall | None], AbstractContextManager[None]] | None
    _step: PendingStep | None
    _replacement: Replacement | None
    _rows: dict[int, tuple[RowMap, RowMap]]
    _left_out: dict[str, set[int]]
    _written: WrittenInputs
    _reports: Reports | None
    _flagged: frozenset[int]
    _kernels: KernelRecorder | None
    _census: Census | None

    # What the session has.
    def failed(self, error: BaseException) -> None:
        raise NotImplementedError

    def _guarded(self) -> AbstractContextManager[None]:
        raise NotImplementedError

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
