"""The step being recorded: its tensors, copied to arenas, and its calls, which refer to them by number."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple, Protocol

import torch

from tracereplay.event import Request, RowKey, RowMap
from tracereplay.recorder.arena import Area, Arena
from tracereplay.recorder.protocol import Descriptor, SampledBytes, StepMessage
from tracereplay.recorder.writer_client import WriterClient
from tracereplay.recorder.writer_handle import ARENAS
from tracereplay.trace import records

__all__ = ["OpenCall", "PendingStep", "dtype_name"]

_DTYPES = {getattr(torch, name): name for name in (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
    "complex32", "complex64", "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
) if hasattr(torch, name)}  # fmt: skip


def dtype_name(x: torch.Tensor) -> str | None:
    """The dtype's name in traces, or None if such a tensor cannot be recorded."""
    return _DTYPES.get(x.dtype) if x.layout is torch.strided else None


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
        self.rows_told = False  # to what feeds it
        self.census: dict[str, Any] | None = None  # of `hooks.census`
        self.latest: dict[int, OpenCall] = {}  # the last call of each slot
        self.frame: Any = None  # of `recorder.graphs`: whose graphs are being replayed
        self.regions: list[Any] = []  # of the frame, as far as they were
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
        self._fired: dict[tuple[int, str, int], int] = {}
        self._begun: dict[int, int] = {}  # per slot, the calls begun by `begin_call`
        self._storages: dict[int, int] = {}
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
        self.put(self.copy(x, arrived=side == "in"), slot, side, index, rows)

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

    def copy(self, x: torch.Tensor, *, arrived: bool = False) -> int:
        """Copies ``x`` and returns its number. A hot path: half the cost of recording.

        Args:
            x: a tensor.
            arrived: whether it is an input. Most are outputs of a previous operator: if that was recorded and is
                unchanged, its number is returned.
        """
        dtype = _DTYPES.get(x.dtype)
        if dtype is None or x.layout is not torch.strided:
            raise TypeError(f"tensors of {x.dtype} and {x.layout} cannot be recorded")
        memory = x.untyped_storage()
        storage = self._storages.get(memory._cdata)
        if storage is None:
            storage = self._new_storage(memory)
        shape, strides, address, arena = x.shape, x.stride(), x.data_ptr(), self._arena
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
        tensors.append((dtype, shape, strides, offset, size, storage, x.storage_offset()))
        return self._before[0] + place

    def _aside(self, x: torch.Tensor) -> int:
        size = x.nbytes
        if not self._arena.fits(size):
            self._make_room(size)
        self._asides.append((self._arena.copy(x, x.data_ptr(), size), size))
        return self._before[1] + len(self._asides) - 1

    def adopt(self, area: Area, used: int) -> None:
        """The device writes the first ``used`` bytes of ``area``; what is copied from now on comes behind them."""
        if self._arena.used:
            self._begin_another()
        self._arena.adopt(area, used)

    def place(self, descriptor: tuple[Any, ...]) -> int:
        """The number of a tensor that the device wrote to the adopted area; fields as in `Descriptor`."""
        self._tensors.append(descriptor)
        return self._before[0] + len(self._tensors) - 1

    def _new_storage(self, storage: torch.UntypedStorage) -> int:
        """A number for a storage that is new in this step.

        The weak reference keeps the address of the StorageImpl, not its memory, from being reused: until the step
        ends, equal addresses mean the same storage.
        """
        found = self._storages[storage._cdata] = len(self._storages)
        self._weak.append(storage._weak_ref())
        return found

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
        self._arena.flush()
        self._full.append((self._arena, self._tensors, self._asides))
        self._before = [self._before[0] + len(self._tensors), self._before[1] + len(self._asides)]
        self._tensors, self._asides = [], []
        self._at.clear()
        # All arenas may hold steps that are not written yet; then the writer must get them, to free one.
        self._hand_full(wait=self._writer.starved())
        arena = self._writer.take(wait=True)
        assert arena is not None
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
        writer.give_back([arena for arena, _, _ in self._full] + [self._arena])
        writer.discard()

    def _message(self) -> StepMessage:
        maps: dict[int, int] = {id(self.rows): 0}
        arrays = [self.rows]

        def place(rows: RowMap) -> int:
            found = maps.get(id(rows))
            if found is None:
                found = maps[id(rows)] = len(arrays)
                arrays.append(rows)
            return found

        calls = [(c.slot, c.number, place(c.rows[0]), place(c.rows[1]), c.inputs, c.outputs, c.written, c.fed)
                 for c in self._calls.values()]  # fmt: skip
        requests = [records.write_request(r) for r in self.requests]
        return StepMessage(
            self.number, [records.write_rows(a) for a in arrays], calls, self._sampled, self.notes, requests,
            self._weight_updates, self.kernels, self.census, self.padded, self._flags,
        )  # fmt: skip
