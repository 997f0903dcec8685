"""The step being recorded: its tensors, copied to arenas, and its calls, which refer to them by number."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple, Protocol

import torch

from tracereplay.event import Request, RowKey, RowMap
from tracereplay.recorder.arena import Area, Arena
from tracereplay.recorder.protocol import Descriptor, SampledBytes, StepMessage
from tracereplay.recorder.selection import Selection
from tracereplay.recorder.writer_client import WriterClient
from tracereplay.recorder.writer_handle import ARENAS
from tracereplay.trace import records

__all__ = ["Behind", "OpenCall", "PendingStep", "dtype_name"]

_DTYPES = {getattr(torch, name): name for name in (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
    "complex32", "complex64", "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
) if hasattr(torch, name)}  # fmt: skip


def dtype_name(x: torch.Tensor) -> str | None:
    """The dtype's name in traces, or None if such a tensor cannot be recorded."""
    return _DTYPES.get(x.dtype) if x.layout is torch.strided else None


class Behind(Exception):
    """The step needs another arena, and the writer has not freed one in time: the step must be given up."""


class OpenCall(NamedTuple):
    """A call in progress. Maps the index of an input or output to the number of its tensor in the step."""

    slot: int
    number: int
    rows: list[RowMap]  # of the inputs and of the outputs
    inputs: dict[int, int]
    outputs: dict[int, int]
    written: dict[int, int]
    fed: list[int] | None = None  # see `event.Call`


class Previous(Protocol):
    """See `handover.Handover`."""

    def drain(self, *, wait: bool) -> bool: ...


class PendingStep:
    """A step being recorded.

    Args:
        number: of the step.
        rows: of the model's forward.
        arena: an empty one; more are taken as needed.
        writer: provides them.
        weight_updates: how often the weights had been updated before, within the pass.
        previous: the steps before, which must be handed over first, since the writer handles one step at a time.
    """

    def __init__(
        self, number: int, rows: RowMap, arena: Arena, writer: WriterClient, weight_updates: int,
        previous: Previous,
    ) -> None:  # fmt: skip
        self.number = number
        self.rows = rows
        self.both = (rows, rows)
        self.notes: list[str] = []
        self.requests: list[Request] = []
        self.kernels: dict[str, Any] | None = None  # a record of `trace.kernels`
        self.feeds = False  # whether recorded values are fed in it
        self.selection: Selection | None = None  # which rows are recorded; None: all
        self.bare = False  # whether it has tokens only, and no operators
        self.passed: set[int] = set()  # slots that were called with none of the rows that are recorded
        self.company: tuple[int, int, int] | None = None  # see `event.Step`
        self.rows_told = False  # to what feeds it
        self.census: dict[str, Any] | None = None  # of `hooks.census`
        self.latest: dict[int, OpenCall] = {}  # the last call of each slot
        self.frame: Any = None  # of `recorder.graphs`: whose graphs are being replayed
        self.regions: list[Any] = []  # of the frame, as far as they were
        self.finished: list[int] = []  # requests that had ended before it, of a recording that takes orders
        self.lacking: list[int] = []  # requests that are known since to lack steps, of a recording with a ring
        self.patience: float | None = (
            None  # seconds that the engine may wait for the writer in the step; None: any
        )
        self._behind = False  # whether it had to wait longer: the current arena is not the step's own any more
        self.padded = 0  # rows of the graphs that the step replayed; 0: it replayed none
        self._weight_updates = weight_updates
        self._writer = writer
        self._previous = previous
        self._arena = arena
        self._full: deque[tuple[Arena, list[tuple[Any, ...]], list[tuple[int, int]]]] = deque()
        self._handed = 0  # arenas that the writer has of this step and was not told to free
        self._tensors: list[tuple[Any, ...]] = []  # fields of `Descriptor`
        self._asides: list[tuple[int, int]] = []
        self._before = [0, 0]  # number of tensors and asides in the arenas filled before the current one
        self._calls: dict[tuple[int, int], OpenCall] = {}
        self._sampled: list[SampledBytes] = []
        self._flags: list[tuple[int, bytes]] = []
        self.dropped = 0  # see `StepMessage`
        self._fired: dict[tuple[int, str, int], int] = {}
        self._begun: dict[int, int] = {}  # per slot, the calls begun by `begin_call`
        self._storages: dict[int, int] = {}
        self._numbered = 0
        self._weak: list[int] = []
        self._at: dict[int, int] = {}  # address -> the last tensor copied from it to the current arena

    # -- gathering --------------------------------------------------------------------------------------

    def begin_call(self, slot: int, rows: tuple[RowMap, RowMap]) -> OpenCall:
        """Starts a call of an operator; the caller adds its tensors by `copy`."""
        number = self._begun.get(slot, 0)
        if self._fired:  # `add` may have created calls of this slot
            while (slot, number) in self._calls:
                number += 1
        self._begun[slot] = number + 1
        self.latest[slot] = call = self._new_call(slot, number, rows)
        return call

    def add(self, x: torch.Tensor, slot: int, side: str, index: int, rows: tuple[RowMap, RowMap]) -> None:
        """Records an input or output of a call outside `begin_call`; the n-th belongs to its site's n-th call."""
        kept = self.kept(x, rows[side == "out"], slot, side, index)
        self.put(self.copy(kept, arrived=side == "in", like=x), slot, side, index, rows)

    def put(self, place: int, slot: int, side: str, index: int, rows: tuple[RowMap, RowMap]) -> None:
        """Does what `add` does with a tensor that is in the step already, under the number ``place``.

        Args:
            side: ``in``, ``out``, or ``after`` for an input as the last call left it.
        """
        if side == "after":
            self.latest[slot].written[index] = place
            return
        key = (slot, side, index)
        number = self._fired.get(key, self._begun.get(slot, 0))
        self._fired[key] = number + 1
        call = self._calls.get((slot, number))
        if call is None:
            call = self._new_call(slot, number, rows)
        if side == "out":
            call.rows[1] = rows[1]  # a sampler knows only afterwards which rows yielded a token
            call.outputs[index] = place
        else:
            call.inputs[index] = place
        self.latest[slot] = call

    def _new_call(self, slot: int, number: int, rows: tuple[RowMap, RowMap]) -> OpenCall:
        call = self._calls[slot, number] = OpenCall(
            slot, number, list(rows), {}, {}, {}, [] if self.feeds else None
        )
        return call

    def add_sampled(
        self, keys: list[RowKey], tokens: torch.Tensor, choices: torch.Tensor, logprobs: torch.Tensor | None
    ) -> None:
        """See `session.Session.sampled`."""
        values = -1 if logprobs is None else self._aside(logprobs)
        self._sampled.append(
            SampledBytes([(*k,) for k in keys], self._aside(tokens), self._aside(choices), values)
        )

    def add_flags(self, finite: torch.Tensor, rows: RowMap) -> None:
        """Says of logits which of their rows are finite (``bool``)."""
        self._flags.append((self._aside(finite), records.write_rows(rows)))

    def changed(self, call: OpenCall, index: int, x: torch.Tensor) -> bool:
        """Whether an input of a call in progress has changed since it was recorded.

        False for inputs of a very large call that are in a previous arena. Waits for the device.
        """
        place = call.inputs[index] - self._before[0]
        if place < 0:
            return False
        d = Descriptor(*self._tensors[place])
        if self._arena.holds(x, x.data_ptr(), d.offset, d.size):
            return False  # that is seen in a tenth of the time
        return self._arena.changed(x, d.offset, d.size)

    def differ(self, one: int, other: int) -> bool:
        """Whether two recorded tensors differ; False if one of them is in a previous arena.

        Waits for the device.
        """
        places = [number - self._before[0] for number in (one, other)]
        if one == other or min(places) < 0:
            return False
        first, second = (Descriptor(*self._tensors[place]) for place in places)
        return self._arena.differ((first.offset, first.size), (second.offset, second.size))

    def compiled(self) -> set[int]:
        """Slots of the operators that a compiled graph called."""
        return {slot for slot, _, _ in self._fired}

    def slots(self) -> set[int]:
        """Slots of the operators that were called."""
        return {slot for slot, _ in self._calls}

    def reserve(self, size: int) -> None:
        """Makes room for ``size`` bytes in one arena, so that what is copied next can be compared by `differ`."""
        if not self._arena.fits(size):
            self._make_room(size)

    def kept(self, x: torch.Tensor, rows: RowMap, slot: int, side: str, index: int) -> torch.Tensor:
        """What is recorded of a tensor with these rows."""
        return x if self.selection is None else self.selection.take(x, rows, (slot, side, index))

    def copy(self, x: torch.Tensor, *, arrived: bool = False, like: torch.Tensor | None = None) -> int:
        """Copies ``x`` and returns its number. A hot path: half the cost of recording.

        Args:
            x: a tensor.
            arrived: whether it is an input. Most are outputs of a previous operator: if that was recorded and is
                unchanged, its number is returned.
            like: the tensor that ``x`` has the rows of, which says how the operator saw it.
        """
        dtype = _DTYPES.get(x.dtype)
        if dtype is None or x.layout is not torch.strided:
            raise TypeError(f"tensors of {x.dtype} and {x.layout} cannot be recorded")
        seen = x if like is None else like
        memory = seen.untyped_storage()
        storage = self._storages.get(memory._cdata)
        if storage is None:
            storage = self._new_storage(memory)
        shape, strides, address, arena = x.shape, seen.stride(), x.data_ptr(), self._arena
        if arrived and (place := self._at.get(address)) is not None:
            was, n, s, offset, size, same, _ = self._tensors[place]
            alike = same == storage and n == shape and s == strides and was == dtype
            if alike and arena.holds(x, address, offset, size):
                return self._before[0] + place
        size = x.nbytes
        if arena.used + size > arena.room:
            self._make_room(size)
            arena = self._arena
        offset = arena.copy(x, address, size)
        tensors = self._tensors
        place = self._at[address] = len(tensors)
        # Not a `Descriptor`: creating a named tuple takes as long as copying a small tensor.
        tensors.append((dtype, shape, strides, offset, size, storage, seen.storage_offset()))
        return self._before[0] + place

    def overwritten(self, x: torch.Tensor) -> None:
        """A recorded output now holds other values, by chance the same ones.

        Its memory counts as another from here on: if that depended on chance, steps that are alike would be
        recorded in as many forms.
        """
        self._at.pop(x.data_ptr(), None)
        memory = x.untyped_storage()._cdata
        if memory in self._storages:
            self._storages[memory] = self._next_storage()

    def _aside(self, x: torch.Tensor) -> int:
        size = x.nbytes
        if not self._arena.fits(size):
            self._make_room(size)
        self._asides.append((self._arena.copy(x, x.data_ptr(), size), size))
        return self._before[1] + len(self._asides) - 1

    def block(self, x: torch.Tensor) -> int:
        """Copies ``x`` and returns where its bytes begin; tensors that are given a `place` next may lie there."""
        if not self._arena.fits(x.nbytes):
            self._make_room(x.nbytes)
        return self._arena.copy(x, x.data_ptr(), x.nbytes)

    def adopt(self, area: Area, used: int) -> None:
        """The device writes the first ``used`` bytes of ``area``; what is copied from now on comes behind them."""
        if self._arena.used:
            self._begin_another()
        self._arena.adopt(area, used)

    def place(self, descriptor: tuple[Any, ...]) -> int:
        """The number of a tensor in the adopted area, or in the last `block`; fields as in `Descriptor`."""
        self._tensors.append(descriptor)
        return self._before[0] + len(self._tensors) - 1

    def _new_storage(self, storage: torch.UntypedStorage) -> int:
        """A number for a storage that is new in this step.

        The weak reference keeps the address of the StorageImpl, not its memory, from being reused: until the step
        ends, equal addresses mean the same storage.
        """
        found = self._storages[storage._cdata] = self._next_storage()
        self._weak.append(storage._weak_ref())
        return found

    def _next_storage(self) -> int:
        self._numbered += 1
        return self._numbered - 1

    def _forget_storages(self) -> None:
        free = torch.UntypedStorage._free_weak_ref
        for reference in self._weak:
            free(reference)
        self._weak.clear()
        self._storages.clear()

    # -- arenas -----------------------------------------------------------------------------------------

    def _make_room(self, size: int) -> None:
        if self._arena.used:
            self._begin_another()
        self._arena.grow(size)

    def _begin_another(self) -> None:
        if self._behind:
            raise Behind
        self._arena.flush()
        self._full.append((self._arena, self._tensors, self._asides))
        self._before = [self._before[0] + len(self._tensors), self._before[1] + len(self._asides)]
        self._tensors, self._asides = [], []
        self._at.clear()
        # All arenas may hold steps that are not written yet; then the writer must get them, to free one.
        self._hand_full(wait=self._writer.starved())
        arena = self._writer.take(wait=True, patience=self.patience)
        if arena is None:
            self._behind = True
            raise Behind
        self._arena = arena

    def _hand_full(self, *, wait: bool) -> None:
        """Hands over full arenas after the previous steps, so that the writer need not begin at the step's end.

        Args:
            wait: for copies; otherwise what has not arrived stays.
        """
        if not self._previous.drain(wait=wait):
            return
        while self._full and (wait or self._full[0][0].arrived()):
            self._writer.hand(*self._full.popleft())
            self._handed += 1
        if self._handed >= ARENAS // 2:
            # At the step's end it would be too late for the next one, and for this one if it needs them all.
            self._writer.release()
            self._handed = 0

    def close(self) -> None:
        """Ends recording of the step."""
        self._forget_storages()
        self._arena.flush()

    def arrived(self) -> bool:
        """Whether all copies are complete, so that `hand_over` need not wait for the device."""
        return self._arena.arrived() and all(arena.arrived() for arena, _, _ in self._full)

    def hand_over(self, writer: WriterClient) -> None:
        """Hands the closed step to the writer."""
        for piece in (*self._full, (self._arena, self._tensors, self._asides)):
            writer.hand(*piece)
        writer.step(self._message())

    def give_up(self, writer: WriterClient) -> None:
        """Abandons the step and returns its arenas."""
        self._forget_storages()
        own = [arena for arena, _, _ in self._full]
        writer.give_back(own if self._behind else [*own, self._arena])
        writer.discard()

    def _message(self) -> StepMessage:
        selection = self.selection
        maps: dict[int, int] = {id(self.rows): 0} if selection is None else {}
        arrays = [self.rows if selection is None else selection.own()]

        def place(rows: RowMap) -> int:
            found = maps.get(id(rows))
            if found is None:
                found = maps[id(rows)] = len(arrays)
                arrays.append(rows if selection is None else selection.of(rows).rows())
            return found

        calls = [(c.slot, c.number, place(c.rows[0]), place(c.rows[1]), c.inputs, c.outputs, c.written, c.fed)
                 for c in self._calls.values()]  # fmt: skip
        requests = [[*records.write_request(r), r.id] for r in self.requests]
        return StepMessage(
            self.number, [records.write_rows(a) for a in arrays], calls, self._sampled, self.notes, requests,
            self._weight_updates, self.kernels, self.census, self.padded, self.company, self.finished, self._flags,
            self.dropped, self.lacking,
        )  # fmt: skip
