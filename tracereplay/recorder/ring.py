"""The flight recorder: the last steps in memory, and what every live request was asked and has answered before.

                 evicted                     kept                    to come
    ... ──▶ [ requests, earlier tokens ] [ step ... step ] ◀── [ after the trigger ]
                 │ one step without calls     │                        │
                 └────────────▶ a `Dump` writes all three as one trace ┘

Kept in the writer process, outside of the engine's memory, so that it survives the engine. Bytes are kept as they
came: compressing them costs several times what the rest of the ring does, and most are never written.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tracereplay.recorder.assembly import read_sampled
from tracereplay.recorder.protocol import SampledBytes, StepMessage
from tracereplay.recorder.ring_limits import RingLimits
from tracereplay.trace import records
from tracereplay.trace.plain import pack, unpack

__all__ = ["SAMPLED", "History", "KeptStep", "Piece", "Ring", "SequenceKey"]

SequenceKey = tuple[int, int]  # request, sequence
# A token and where it belongs, as `event.Sampled`; without a logprob, that is not a number.
SAMPLED = np.dtype(
    [("key", np.int32, 3), ("token", np.int64), ("choice", np.int64), ("logprob", np.float32)], align=True
)
SampledRows = npt.NDArray[Any]  # of `SAMPLED`
OVERHEAD = 1024  # bytes that the objects of a step or of a sequence take beside its contents
MOST_NOTES = 64  # of steps that are no longer kept
MOST_LACKING = 1 << 16  # requests that are remembered; an engine has fewer at once
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD


class Piece(NamedTuple):
    """An arena's part of a step: its bytes, and descriptors of tensors and asides as they came, packed."""

    data: bytes
    described: bytes

    @property
    def size(self) -> int:
        return len(self.data) + len(self.described)


class KeptStep(NamedTuple):
    """A step in memory.

    Args:
        came: when, on the monotonic clock.
        number: of the step.
        message: a `StepMessage`, packed.
        pieces: its tensors.
        sequences: those that have rows in it.
        requests: that begin in it, packed.
        sampled: its tokens.
        notes, census, weight_updates: of the `StepMessage`.
        size: bytes that it takes.
    """

    came: float
    number: int
    message: bytes
    pieces: tuple[Piece, ...]
    sequences: tuple[SequenceKey, ...]
    requests: tuple[bytes, ...]
    sampled: SampledRows
    notes: tuple[str, ...]
    census: dict[str, Any] | None
    weight_updates: int
    size: int


class History:
    """What one sequence was asked, and got in steps that are no longer kept."""

    def __init__(self) -> None:
        self.request: bytes | None = None  # packed; None: the step in which it began was not seen
        self.tokens = bytearray()  # `SAMPLED`, in their order

    @property
    def size(self) -> int:
        return OVERHEAD + len(self.request or b"") + len(self.tokens)


class Ring:
    """The last steps; they are counted from the first that came, which has the place 0.

    Args:
        limits: how much is kept at most.
    """

    def __init__(self, limits: RingLimits) -> None:
        _give_memory_back()
        self.limits = limits
        self._steps: deque[KeptStep] = deque()
        self._in_steps = self._in_past = 0  # bytes
        self._past: dict[SequenceKey, History] = {}  # the one that has had no token for longest comes first
        self._last: dict[SequenceKey, int] = {}  # of each live sequence the place of its last step
        self._ended: set[SequenceKey] = set()
        self.begin = 0  # the place of the oldest step that is kept
        self.forgotten = 0  # sequences whose past was too much to keep
        self.notes: list[str] = []  # of steps that are no longer kept, as the next
        self.census: dict[str, Any] | None = None
        self.weight_updates = 0
        self.last_number = -1  # of the youngest step that is no longer kept
        self.newest = -1  # the highest number of a request
        self.lacking: dict[int, None] = {}  # requests that lack steps, those last that were said last

    @property
    def end(self) -> int:
        """The place of the next step that will come."""
        return self.begin + len(self._steps)

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._in_steps + self._in_past

    def at(self, place: int) -> KeptStep:
        """A step that is kept."""
        return self._steps[place - self.begin]

    def past(self) -> Mapping[SequenceKey, History]:
        """Of sequences that are live, or have rows in a step that is kept."""
        return self._past

    def add(self, message: Sequence[Any], pieces: Sequence[Piece], asides: Sequence[bytes]) -> KeptStep:
        """Keeps a step, and returns it.

        Args:
            message: a `StepMessage`'s fields.
            pieces: its tensors and asides.
            asides: the latter once more.
        """
        step = StepMessage(*message)
        found = [_sampled(SampledBytes(*each), asides) for each in step.sampled]
        sampled = found[0] if len(found) == 1 else np.concatenate([np.empty(0, SAMPLED), *found])
        packed, requests = pack(list(message)), tuple(map(pack, step.requests))
        rows = records.read_rows(step.maps[0])
        sequences = tuple(dict.fromkeys((r, s) for r, s, _ in rows.tolist() if r >= 0))
        size = OVERHEAD + len(packed) + sum(map(len, requests)) + sampled.nbytes + sum(p.size for p in pieces)
        kept = KeptStep(
            time.monotonic(), step.number, packed, tuple(pieces), sequences, requests, sampled, tuple(step.notes),
            step.census, step.weight_updates, size,
        )  # fmt: skip
        self._steps.append(kept)
        self._in_steps += size
        self._last.update(dict.fromkeys(sequences, self.end - 1))
        self.newest = max([self.newest, *(request for request, _ in sequences)])
        self.lacking.update(dict.fromkeys(step.lacking))
        while len(self.lacking) > MOST_LACKING:
            del self.lacking[next(iter(self.lacking))]
        return kept

    def ended(self, key: SequenceKey) -> None:
        """A sequence has come to its end; what is known of it goes with its last step."""
        if key in self._last:
            self._ended.add(key)
            self._let_go(key)

    def overfull(self) -> bool:
        """Whether the oldest step must go."""
        limits = self.limits
        return bool(self._steps) and (
            self.size > limits.bytes
            or (limits.steps is not None and len(self._steps) > limits.steps)
            or (limits.seconds is not None and time.monotonic() - self._steps[0].came > limits.seconds)
        )

    def evict(self) -> None:
        """Lets the oldest step go, but for what its requests asked and got."""
        step = self._steps.popleft()
        self.begin += 1
        self._in_steps -= step.size
        new = [note for note in step.notes if note not in self.notes]
        self.notes = (self.notes + new)[:MOST_NOTES]
        self.census = step.census or self.census
        self.weight_updates, self.last_number = step.weight_updates, step.number
        for packed in step.requests:
            request, sequence, *_ = unpack(packed, "the request", own=True)
            self._grow((request, sequence), request=packed)
        tokens, size = step.sampled.tobytes(), SAMPLED.itemsize
        for place, (request, sequence, _) in enumerate(step.sampled["key"].tolist()):
            self._grow((request, sequence), tokens[place * size : (place + 1) * size])
        for sequence_key in step.sequences:
            self._let_go(sequence_key)
        while self._in_past > self.limits.bytes // 2:  # the rest is for steps
            self._forget(next(iter(self._past)))
            self.forgotten += 1

    def _grow(self, key: SequenceKey, tokens: bytes = b"", request: bytes | None = None) -> None:
        found = self._past.pop(key, None)
        self._in_past -= 0 if found is None else found.size
        found = self._past[key] = found or History()
        found.tokens += tokens
        found.request = request or found.request
        self._in_past += found.size

    def _let_go(self, key: SequenceKey) -> None:
        if key in self._ended and self._last.get(key, -1) < self.begin:
            self._forget(key)

    def _forget(self, key: SequenceKey) -> None:
        found = self._past.pop(key, None)
        self._in_past -= 0 if found is None else found.size
        self._last.pop(key, None)
        self._ended.discard(key)


def _sampled(piece: SampledBytes, asides: Sequence[bytes]) -> SampledRows:
    found = np.empty(len(piece.keys), SAMPLED)
    if not len(found):
        return found
    tokens, choices, logprobs = read_sampled(piece, asides)
    found["key"], found["token"], found["choice"] = np.array(piece.keys, np.int32), tokens, choices
    found["logprob"] = np.nan if logprobs is None else logprobs
    return found


def _give_memory_back() -> None:
    """Lets the allocator return large blocks to the system at once. By itself it raises the size from which on it
    does so as they come and go, and a process that only ever holds the last steps grows by their fragments."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 128 << 10)
