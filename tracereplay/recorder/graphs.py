"""Recording and feeding inside CUDA graphs.

A graph runs no Python when it is replayed, so what a tap does must be in the graph, as work of the device on
memory that never moves. While a graph is captured, each tap copies its tensor to the next free place of one
staging area, and takes, row by row, what a second area holds for it wherever a mask says so:

                     x ──▶ staging[offset]                    recorded
    where(mask[rows], golden[offset], x) ──▶ operator         fed

Where everything lies is kept in the *frame* of that run of the model's forward, and what each graph adds in its
*region*: after a replay the step has the region's tensors without anybody having looked at them. All frames use
the same area, since graphs are replayed one after another; what was written is copied out before the next one
begins.

    forward (warm-up) ─▶ capture: frame, regions ─▶ [ replays ─▶ rows fed ─▶ graph ─▶ replayed ─▶ step's calls ]*

A graph pads a batch to the number of rows that it was captured with. Real rows come first; the others are never
recorded, and never fed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch

from tracereplay.device import Device
from tracereplay.errors import Unsupported
from tracereplay.event import RowMap, Site
from tracereplay.hooks.writes import CAN_WATCH, watching_writes
from tracereplay.recorder.arena import aligned, place_in
from tracereplay.recorder.frames import Frame, Region, Tapped
from tracereplay.recorder.graph_feeding import CancelledError, GraphFeeding
from tracereplay.recorder.graph_memory import GraphMemory, Meter, Tap
from tracereplay.recorder.graph_rows import Wanted, gather
from tracereplay.recorder.options import KERNEL, NO_KERNELS, GraphOptions, Options
from tracereplay.recorder.protocol import Descriptor
from tracereplay.recorder.replacement import Replacement
from tracereplay.recorder.selection import Selection
from tracereplay.recorder.staged import NthTap, Rehearsals, Staged
from tracereplay.recorder.step import PendingStep, dtype_name
from tracereplay.recorder.written import DeclaredWrites, hidden

__all__ = ["GraphRecorder"]

_REGION = "_tracereplay_region"  # attribute of a graph


class Host(Protocol):
    """The session, as far as this needs it."""

    @property
    def pending(self) -> PendingStep | None:
        """The step that is being recorded."""

    @property
    def replacement(self) -> Replacement | None:
        """What it feeds."""

    def rows_of(self, slot: int) -> tuple[RowMap, RowMap]:
        """Rows of the inputs and of the outputs of that operator's calls."""

    def keeps(self, slot: int, side: str) -> bool:
        """Whether that side of that operator is recorded."""

    def failed(self, error: BaseException) -> None:
        """Counts an error."""


class _Rehearsal(NamedTuple):
    """A warm-up; see `Rehearsals.keep`."""

    first: dict[NthTap, NthTap]
    changed: set[NthTap]


class GraphRecorder:
    """Sees graphs being captured and replayed (`hooks.captures.Captures`).

    Args:
        host: records the steps in which they are replayed.
        device: where they run.
        largest: rows of the largest graph.
        options: see there.
        cancelled: how an own error is cancelled.
        sites: all operators of the model.
    """

    def __init__(
        self, host: Host, device: Device, largest: int, options: GraphOptions, cancelled: CancelledError,
        sites: Sequence[Site],
    ) -> None:  # fmt: skip
        self._host, self._device, self._options = host, device, options
        self._left_out = options.left_out(sites)
        self.memory = GraphMemory(device, options, largest)
        self._feeding = GraphFeeding(self.memory, device, cancelled, sites)
        self._meter: Meter | None = None
        self._outside = Frame(0)  # of what is captured outside of a forward: nothing that has a place
        self._frame: Frame | None = None
        self._region: Region | None = None
        self._capturing = False
        self._writes = DeclaredWrites()
        self._short: dict[int, int] = {}  # by rows of a frame, how many operators had no place
        self._trouble: dict[str, int] = {}  # what went wrong while graphs were captured, and how often
        self._strangers = False  # whether graphs were replayed that were captured before this was there
        # Where outputs may be fed, they are written over as soon as they are staged.
        self._refers = CAN_WATCH and options.areas == 1  # whether graphs refer to what is staged already
        self._warm_up = True  # no graph has been replayed yet
        self._rehearsing: _Rehearsal | None = None
        self._rehearsals = Rehearsals()

    # -- the model's forward ----------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether taps are to be told of tensors although no step is recorded."""
        return self._meter is not None or self._region is not None or self._rehearsing is not None

    @contextlib.contextmanager
    def forward(self, rows: int) -> Iterator[None]:
        """One run of the model's forward outside of a step; the first one tells how much memory graphs take."""
        if self._frame is not None or not rows:
            yield
            return
        if not self.memory.areas and not self._capturing:
            self._meter = Meter(rows)
        self._frame = frame = Frame(rows)
        watch = self._refers and self._warm_up and self._meter is None and self.memory.holds(rows)
        if watch and self._region is None:
            self._rehearsing = _Rehearsal({}, set())
            self._device.hold(self.memory.areas[0].mark)
        try:
            with watching_writes(frame.staged) if watch else contextlib.nullcontext():
                yield
        finally:
            self._frame = None
            if self._rehearsing is not None:
                self._rehearsals.keep(rows, *self._rehearsing)
                self._rehearsing = None
            frame.close()
            if frame.missing:
                self._short[frame.rows] = max(self._short.get(frame.rows, 0), len(frame.missing))
            if self._meter is not None:
                meter, self._meter = self._meter, None
                self.memory.take(meter)

    def refuse(self, options: Options, replacement: Replacement | None) -> None:
        """Raises Unsupported for a pass that these graphs cannot be recorded in, or fed."""
        if replacement is not None and self._options.areas < (2 if replacement.feeds else 3):
            raise Unsupported(
                "This engine captured its CUDA graphs to be recorded, and not to be given what this pass feeds; "
                "start it by replay or bisect, or set enforce_eager=true."
            )
        if options.level == KERNEL:
            raise Unsupported(NO_KERNELS)
        if self.memory.refusal is not None:
            raise Unsupported(self.memory.refusal)

    @property
    def watching(self) -> bool:
        """Whether a forward that begins now is to be seen by all taps."""
        return self.listening or self._warm_up

    def told(self) -> list[str]:
        """Notes for the reader of a trace on what is not recorded."""
        notes = [self.memory.said(rows, count) for rows, count in sorted(self._short.items())]
        if self.memory.refusal is not None:
            notes.append(self.memory.refusal)
        if unfed := self._feeding.unfed:
            notes.append(f"{unfed} tensors inside CUDA graphs cannot be fed; the first forward did not have them.")
        notes += [
            f"While CUDA graphs were captured: {text} ({count} times)." for text, count in self._trouble.items()
        ]
        return notes

    # -- capturing --------------------------------------------------------------------------------------

    def begins(self, graph: Any) -> None:
        """See `hooks.captures.Captures`."""
        self._capturing = True
        setattr(graph, _REGION, None)
        if self._host.pending is None and self.memory.areas:
            self._region = Region(self._frame or self._outside)
            setattr(graph, _REGION, self._region)
            if self._frame is not None:
                self._frame.staged.unknown()  # another graph's copies, which need not run with this one's
                if self._rehearsing is not None:
                    self._rehearsing = None
                    self._frame.used = 0

    def ends(self, graph: Any) -> None:
        """See `hooks.captures.Captures`."""
        self._region = None

    def scope(self, call: Any) -> AbstractContextManager[None]:
        """Around a call that is captured, or measured: what it writes in place is copied a second time."""
        return self._writes.collected() if self.listening else contextlib.nullcontext()

    def arrived(self, slot: int, inputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """The inputs of a call; returns what each is to be replaced by."""
        return [self._tap(slot, "in", index, x, len(inputs)) for index, x in enumerate(inputs)]

    def returned(self, slot: int, taken: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        """The outputs of the call, and its inputs as it left them."""
        if self.listening:
            for index in hidden(taken, outputs):
                if self._writes.to(taken[index]):
                    self._tap(slot, "after", index, taken[index], None)
        for index, x in enumerate(outputs):
            self.observe(slot, index, x)

    def feed(self, slot: int, index: int, x: torch.Tensor) -> torch.Tensor | None:
        """One input; returns what it is to be replaced by."""
        return self._tap(slot, "in", index, x, None)

    def observe(self, slot: int, index: int, x: torch.Tensor) -> None:
        """One output, which is written over."""
        self._tap(slot, "out", index, x, None)

    def _tap(self, slot: int, side: str, index: int, x: torch.Tensor, inputs: int | None) -> torch.Tensor | None:
        try:
            name = dtype_name(x)
            if name is None or slot in self._left_out["out" if side == "out" else "in"]:
                return None
            if self._meter is not None:
                self._meter.see((slot, side, index), x)
            nth = (slot, side, index, -1) if self._frame is None else self._frame.nth((slot, side, index))
            if self._region is not None:
                return self._captured(self._region, nth, x, name, inputs)
            if self._rehearsing is not None and self._frame is not None:
                self._rehearse(self._frame, self._rehearsing, nth, x, name)
            return None
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self._trouble[text] = self._trouble.get(text, 0) + 1
            return None

    def _captured(
        self, region: Region, nth: NthTap, x: torch.Tensor, dtype: str, inputs: int | None
    ) -> torch.Tensor | None:
        if region.frame is self._outside:
            if self._frame is None:
                raise RuntimeError("a tap ran in a capture outside of the model's forward")
            region.frame = self._frame  # the capture began before it
        frame = region.frame
        slot, side, index, _ = nth
        staged = self._placed(frame, x, dtype)
        known = frame.staged.find(x, staged)
        if known is not None and self._rehearsals.same(frame.rows, nth, known.tap):
            staged = known.place
        elif not self._stage(frame, nth, x, staged):
            frame.missing.add(slot)
            return None
        per_row = self._per_row(frame, (slot, "in" if side == "after" else side, index), x)
        tapped = Tapped(slot, side, index, staged, inputs, -1, -1, per_row)
        given = None
        try:
            tapped, given = self._feeding.captured(frame, tapped, x)
        finally:  # what cannot be fed is recorded
            region.taps.append(tapped)
            frame.taps.append(tapped)
        return given

    def _rehearse(self, frame: Frame, rehearsal: _Rehearsal, nth: NthTap, x: torch.Tensor, dtype: str) -> None:
        """Stages ``x`` as a graph would, or compares it with what it would refer to. Waits for the device."""
        staged = self._placed(frame, x, dtype)
        known = frame.staged.find(x, staged)
        if known is not None:
            there = self.memory.areas[0].memory[known.place.offset :][: known.place.size]
            if torch.equal(there, x.detach().contiguous().flatten().view(torch.uint8)):
                rehearsal.first[nth] = rehearsal.first[known.tap]
                return
            rehearsal.changed.add(nth)
        if self._stage(frame, nth, x, staged):
            rehearsal.first[nth] = nth

    def _placed(self, frame: Frame, x: torch.Tensor, dtype: str) -> Descriptor:
        """``x`` at the next free place of the staging area."""
        if x.device != self.memory.areas[0].memory.device:
            raise TypeError(f"a tensor on {x.device} cannot be copied there")
        return Descriptor(
            dtype, tuple(x.shape), x.stride(), frame.used, x.nbytes, frame.storage(x), x.storage_offset()
        )

    def _stage(self, frame: Frame, nth: NthTap, x: torch.Tensor, staged: Descriptor) -> bool:
        """Copies ``x`` there; False: there is no room left."""
        if frame.used + staged.size > self.memory.capacity:
            return False
        place_in(self.memory.areas[0].views, x, staged.offset).copy_(x)
        frame.used += aligned(staged.size)
        if self._refers:
            frame.staged.add(x, Staged(staged, nth))
        return True

    def _per_row(self, frame: Frame, tap: Tap, x: torch.Tensor) -> int:
        """How many of its rows each of the frame's has; 0: it is not divided by rows."""
        length = x.shape[0] if x.dim() else 0
        found = self.memory.per_row.get(tap, int(length == frame.rows))
        return found if length == found * frame.rows else 0

    # -- replaying --------------------------------------------------------------------------------------

    def replays(self, graph: Any) -> None:
        """See `hooks.captures.Captures`: a step's rows are fed before its first graph."""
        step, region = self._host.pending, getattr(graph, _REGION, None)
        self._warm_up = False
        try:
            if self.memory.areas:
                self._device.hold(self.memory.areas[0].mark)
            if step is None:
                self._feeding.nothing()
            if step is None or region is None or not region.taps:
                return
            frame = region.frame
            if step.frame is not frame or region in step.regions:
                if step.selection is None:
                    step.adopt(self.memory.areas[0], frame.used)
                self._device.hold(self.memory.areas[0].mark)
                step.frame, step.padded = frame, frame.rows
                step.regions.clear()
                self._feeding.send(frame, self._host.replacement, self._host.rows_of)
            step.regions.append(region)
        except Exception as error:
            self._host.failed(error)
            with contextlib.suppress(Exception):  # what is half filled must not be fed
                self._feeding.nothing(after_failure=True)

    def replayed(self, graph: Any) -> None:
        """See `hooks.captures.Captures`: the step has what the graph staged."""
        step = self._host.pending
        if step is None:
            return
        if not hasattr(graph, _REGION) and not self._strangers:
            self._strangers = True
            step.notes.append(
                "A CUDA graph was replayed that was captured before taps were there; what it computes is not "
                "recorded."
            )
        region = getattr(graph, _REGION, None)
        if region is None or not step.regions or step.regions[-1] is not region:
            return
        try:
            if step.selection is not None:
                self._record_rows(step, region, step.selection)
                return
            places: dict[tuple[int, int], int] = {}
            for tapped in region.taps:
                self._record(step, region.frame, tapped, places)
        except Exception as error:
            self._host.failed(error)

    def without_padding(self, step: PendingStep, tap: Tap, x: torch.Tensor, rows: int) -> torch.Tensor:
        """Of a tensor of an operator that runs between graphs, on what they padded, the real rows."""
        per_row = self._per_row(step.frame, tap, x)
        return x[: rows * per_row] if per_row and rows < step.frame.rows else x

    def _record_rows(self, step: PendingStep, region: Region, selection: Selection) -> None:
        """Adds to the step what a graph staged of the rows that are recorded; nothing is fed in such a step."""
        wanted: list[tuple[Wanted, tuple[RowMap, RowMap]]] = []
        for tapped in region.taps:
            out = tapped.side == "out"
            if not self._host.keeps(tapped.slot, "out" if out else "in"):
                continue
            rows = self._host.rows_of(tapped.slot)
            kept = selection.of(rows[out])
            if len(kept):
                wanted.append((Wanted(tapped, kept), rows))
            else:
                step.passed.add(tapped.slot)
        memory = self.memory.areas[0].memory
        places = gather(step, memory, region.frame.rows, [one for one, _ in wanted], self._device)
        for one, rows in wanted:
            step.put(places[one.key], *one.tapped[:3], rows)

    def _record(self, step: PendingStep, frame: Frame, tapped: Tapped, places: dict[tuple[int, int], int]) -> None:
        """Adds to the step what one tap staged, or refers to.

        Args:
            places: the numbers of the region's tensors in the step, by offset and size.
        """
        slot, side, index, staged = tapped[:4]
        replacement = self._host.replacement
        if not self._host.keeps(slot, "out" if side == "out" else "in"):
            return
        if side == "after" and replacement is not None:
            return  # as in eager mode: what is fed is not what golden's caller gave
        rows = self._host.rows_of(slot)
        shape, size = staged.shape, staged.size
        real = len(rows[1] if side == "out" else rows[0])
        if tapped.per_row and real < frame.rows:
            shape, size = (real * tapped.per_row, *shape[1:]), size // frame.rows * real
        place = places.get((staged.offset, size))
        if place is None:
            place = places[staged.offset, size] = step.place(staged._replace(shape=shape, size=size))
        step.put(place, slot, side, index, rows)
        if side == "in" and replacement is not None and tapped in self._feeding.fed:
            fed = step.latest[slot].fed
            if fed is not None:
                fed.extend(replacement.stands_for(slot, index, tapped.inputs))
