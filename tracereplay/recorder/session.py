"""One process's recording: gathers the taps' tensors into calls and steps, and hands steps to the writer.

    begin_pass ─▶ [ begin_step ─▶ feed/observe ... ─▶ end_step ]* ─▶ end_pass

Outside a pass, and in a pass outside a step (profile runs, warm-up), taps cost a comparison and do nothing.
Nothing here raises into the engine: what fails is counted, noted in the trace, and the generation goes on.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from tracereplay.event import Request, RowKey, RowMap, Sampled, Site
from tracereplay.recorder.arena import Arena, ArenaPool, HandOff
from tracereplay.trace import PendingCall, SegmentWriter, TensorBytes

__all__ = ["Replacement", "Session"]


CHECKED_CALLS = 2  # of each site, for arguments written in place: a comparison costs as much as a copy
_DTYPES = {getattr(torch, name): name for name in (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
    "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
)}  # fmt: skip


class Replacement(Protocol):
    """Gives recorded values in place of those that arrive."""

    def rows(self, slot: int, side: str, index: int, rows: RowMap, like: torch.Tensor) -> torch.Tensor | None:
        """``like`` with the recorded value of each known row (as a new tensor), None if no row is known."""


class _PendingStep:
    """What a step has seen so far."""

    def __init__(self, number: int, rows: RowMap, arena: Arena) -> None:
        self.number = number
        self.rows = rows
        self.arena = arena
        self.calls: dict[tuple[int, int], PendingCall] = {}
        self.sampled: list[tuple[list[RowKey], memoryview, memoryview, memoryview | None]] = []
        self.notes: list[str] = []
        self.requests: list[Request] = []
        self._fired: dict[tuple[int, str, int], int] = {}
        self._latest: dict[int, PendingCall] = {}

    def call(self, slot: int, side: str, index: int, rows: tuple[RowMap, RowMap]) -> PendingCall:
        """The call that this tap belongs to: a tap's n-th firing belongs to its site's n-th call."""
        key = (slot, side, index)
        number = self._fired.get(key, 0)
        self._fired[key] = number + 1
        found = self.calls.get((slot, number))
        if found is None:
            found = self.calls[(slot, number)] = PendingCall(slot, number, *rows)
        if side == "out":
            found.rows_out = rows[1]  # a sampler knows only afterwards which of its rows gave a token
        self._latest[slot] = found
        return found

    def latest(self, slot: int) -> PendingCall:
        """The call of ``slot`` that is under way."""
        return self._latest[slot]


def _changed(call: PendingCall, taken: Sequence[Any], outputs: Sequence[Any]) -> set[int]:
    """Indices of inputs whose bytes are no longer those recorded, and that no output shows."""
    returned = {x.untyped_storage().data_ptr() for x in outputs if isinstance(x, torch.Tensor)}
    hidden = [i for i, x in enumerate(taken) if x.untyped_storage().data_ptr() not in returned]
    return {i for i in hidden if call.inputs[i].data != _bytes(taken[i])}


def _bytes(x: torch.Tensor) -> memoryview:
    return memoryview(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


class Session:
    """The recorder of one process; also the taps' listener.

    Args:
        rank: this process's rank among the engine's workers.
        device: where the model lives.
    """

    def __init__(self, rank: int, device: torch.device) -> None:
        self.rank = rank
        self.sites: list[Site] = []
        self._cuda = device.type == "cuda"
        self._pool: ArenaPool | None = None
        self._hand_off: HandOff | None = None
        self._writer: SegmentWriter | None = None
        self._replacement: Replacement | None = None
        self._step: _PendingStep | None = None
        self._steps = 0
        self._rows: dict[int, tuple[RowMap, RowMap]] = {}
        self._errors: dict[str, int] = {}
        self._silent: set[int] = set()
        self._checked: dict[int, int] = {}
        self._writes: dict[int, set[int]] = {}

    # -- a pass -----------------------------------------------------------------------------------------

    def begin_pass(self, writer: SegmentWriter, replacement: Replacement | None) -> None:
        """Starts recording; ``replacement`` feeds recorded values (None: only watch)."""
        self._pool = self._pool or ArenaPool(pinned=self._cuda)
        self._hand_off = HandOff(self._failed)
        self._writer = writer
        self._replacement = replacement
        self._steps = 0
        self._errors.clear()
        self._silent.clear()
        writer.sites(self.sites)

    def end_pass(self) -> dict[str, Any]:
        """Waits for the writer and closes the segment; returns what went wrong, if anything."""
        writer, self._writer, self._replacement = self._writer, None, None
        if self._hand_off is not None:
            self._hand_off.close()
            self._hand_off = None
        summary = {"steps": self._steps, "errors": dict(self._errors)}
        if writer is not None:
            with self._guarded():
                writer.abandon() if self._errors else writer.close(summary)
        return {**summary, "errors": dict(self._errors)}

    @property
    def recording(self) -> bool:
        """Whether a pass is under way."""
        return self._writer is not None

    # -- a step -----------------------------------------------------------------------------------------

    def begin_step(self, rows: RowMap) -> None:
        """The model is about to run over ``rows``."""
        if self._writer is not None and self._pool is not None:
            if self._step is not None:  # the engine gave that step up; its arena would be missing for ever
                self._pool.give(self._step.arena)
            self._step = _PendingStep(self._steps, rows, self._pool.take())
            self._rows.clear()

    def set_rows(self, slot: int, rows_in: RowMap, rows_out: RowMap) -> None:
        """The calls of ``slot`` have other rows than the model's forward, until said otherwise."""
        self._rows[slot] = (rows_in, rows_out)

    def sampled(
        self, keys: list[RowKey], tokens: torch.Tensor, choices: torch.Tensor, logprobs: torch.Tensor | None
    ) -> None:
        """Tokens (int64), own choices (int64) and logprobs (float32) of ``keys``, one each."""
        step = self._step
        if step is not None:
            with self._guarded():
                values = None if logprobs is None else step.arena.copy(logprobs)
                step.sampled.append((keys, step.arena.copy(tokens), step.arena.copy(choices), values))

    def requested(self, requests: Sequence[Request]) -> None:
        """Requests that begin in this step, where no workload names them."""
        if self._step is not None:
            self._step.requests.extend(requests)

    def end_step(self) -> None:
        """Hands the step to the writer."""
        step, self._step = self._step, None
        if step is None or self._hand_off is None or self._writer is None or self._pool is None:
            return
        self._note_silence(step)
        self._steps += 1
        ready = None
        if self._cuda:
            ready = torch.cuda.Event()
            ready.record()
        self._hand_off.put(functools.partial(_write, step, self._writer, self._pool, ready))

    def _note_silence(self, step: _PendingStep) -> None:
        """Notes sites that did not run, once each: an operator that is not seen may not be passed over."""
        fired = {slot for slot, _ in step.calls}
        for site in self.sites:
            if site.slot not in fired and site.slot not in self._silent:
                self._silent.add(site.slot)
                step.notes.append(f"{site.name} did not run in step {step.number}.")

    # -- taps -------------------------------------------------------------------------------------------

    def feed(self, x: torch.Tensor, slot: int, index: int) -> torch.Tensor | None:
        step = self._step
        if step is None:
            return None
        try:
            rows = self._rows.get(slot) or (step.rows, step.rows)
            step.call(slot, "in", index, rows).inputs[index] = _copied(x, step.arena)
            if self._replacement is not None and x.is_floating_point():
                return self._replacement.rows(slot, "in", index, rows[0], x)
        except Exception as error:
            self._failed(error)
        return None

    def observe(self, x: torch.Tensor, slot: int, index: int, *, replace: bool = True) -> None:
        step = self._step
        if step is None:
            return
        try:
            rows = self._rows.get(slot) or (step.rows, step.rows)
            step.call(slot, "out", index, rows).outputs[index] = _copied(x, step.arena)
            if replace and self._replacement is not None and x.is_floating_point():
                given = self._replacement.rows(slot, "out", index, rows[1], x)
                if given is not None:
                    x.copy_(given)
        except Exception as error:
            self._failed(error)

    def returned(self, slot: int, taken: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Keeps inputs that the operator changed in place and did not return.

        Whether it does so is found on its first calls, by comparison; afterwards only those that do are kept.
        """
        step = self._step
        if step is None or self._replacement is not None:
            return
        try:
            call = step.latest(slot)
            if self._checked.get(slot, 0) < CHECKED_CALLS:
                self._checked[slot] = self._checked.get(slot, 0) + 1
                self._writes.setdefault(slot, set()).update(_changed(call, taken, outputs))
            for index in self._writes[slot]:
                call.written[index] = _copied(taken[index], step.arena)
        except Exception as error:
            self._failed(error)

    # -- failures ---------------------------------------------------------------------------------------

    def _failed(self, error: BaseException) -> None:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.errno is not None:
            text = f"{os.strerror(error.errno)} (while writing the trace)"
        self._errors[text] = self._errors.get(text, 0) + 1

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failed(error)


def _copied(x: torch.Tensor, arena: Arena) -> TensorBytes:
    return TensorBytes(_DTYPES[x.dtype], tuple(x.shape), tuple(x.stride()), arena.copy(x))


def _write(step: _PendingStep, writer: SegmentWriter, pool: ArenaPool, ready: torch.cuda.Event | None) -> None:
    try:
        if ready is not None:
            ready.synchronize()  # also before an arena is given back
        sampled = [s for piece in step.sampled for s in _decode_sampled(*piece)]
        writer.step(step.number, step.rows, list(step.calls.values()), sampled, step.notes, step.requests)
    finally:
        pool.give(step.arena)


def _decode_sampled(
    keys: Sequence[RowKey], tokens: memoryview, choices: memoryview, logprobs: memoryview | None
) -> list[Sampled]:
    token_ids = np.frombuffer(tokens, dtype=np.int64).tolist()
    own = np.frombuffer(choices, dtype=np.int64).tolist()
    values = [None] * len(keys) if logprobs is None else np.frombuffer(logprobs, dtype=np.float32).tolist()
    return [Sampled(*fields) for fields in zip(keys, token_ids, own, values, strict=True)]
