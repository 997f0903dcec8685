"""Messages between the engine's process and the writer process: msgpack lists, each preceded by its length.

engine ─▶ writer   ["open", path, meta, codec, max_bytes, [fd of each arena], [recipient...], key or nil, live]
                                                         live: whether it shall know the requests under way,
                                                         for a "cut"
                   ["sites", [...]]                     see `trace.records`
                   ["tensors", arena, size, [...], [...]]   tensors of this step in the arena: `Descriptor`s of
                                                        values, and offset and size of asides
                   ["release"]                          free the arenas of the step in progress
                   ["step", ...]                        the step is complete: see `StepMessage`
                   ["discard"]                          the engine abandoned the step
                   ["close", summary, whole]            end the segment; not whole: without an end mark. Another
                                                        "open" may follow
                   ["cut", summary, whole, path, meta, moved, number]   end the segment and begin another, with the
                                                        requests that are live (`live.Moved`) before step `number`
                   with a flight recorder:
                   ["ring", path, meta, options, [fd of each arena], room or nil]   instead of "open": keep what
                                                        follows in memory; no segment of that path is made. room:
                                                        where its parent gives orders
                   ["ended", [...]]                     `triggers.Ended` of sequences
                   ["fired", ...]                       a `triggers.Fired`
                   ["dump", trace, trigger, after]      see `flight.FlightRecorder.dump`
writer ─▶ engine   ["here", pid]   ["free", arena]   ["wrote", steps, bytes]   ["spent"]
                     ["failed", text]   ["closed"]   ["cut", size of the segment that was ended]
                     ["dumping", trace]   ["dumped", trace, bytes]
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from tracereplay.trace.plain import pack, unpack

__all__ = ["Descriptor", "Inbox", "SampledBytes", "StepMessage", "send"]

_LENGTH = struct.Struct("<I")


class Descriptor(NamedTuple):
    """A tensor in an arena: `trace.TensorBytes`, with the place of its bytes instead of the bytes."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    size: int
    storage: int
    start: int


class SampledBytes(NamedTuple):
    """Sampled tokens. Numbers index the step's asides: bytes that are not values of the trace.

    Args:
        keys: (request, sequence, position) of each.
        tokens, choices: int64 tensors.
        logprobs: a float32 tensor; -1 without.
    """

    keys: list[tuple[int, int, int]]
    tokens: int
    choices: int
    logprobs: int


class StepMessage(NamedTuple):
    """A complete step. Its tensors were sent before; numbers index them in that order.

    Args:
        number: of the step.
        maps: row maps as bytes; the first is the step's own.
        calls: slot, number, places of the rows in and out in ``maps``, tensors of inputs, outputs and inputs
            after, and what was fed (`event.Call`).
        sampled, notes, requests, weight_updates: see `event.Step`; requests as `trace.records` writes them,
            and the id of each.
        kernels: a record of `trace.kernels`; None unless kernels are recorded.
        census: what `hooks.census` found; None for most steps.
        padded, company: see `event.Step`.
        finished: requests that had ended before the step.
        flags: of logits, the aside that says which of their rows are finite (``bool``), and the row map.
        dropped: steps that the recording has dropped so far, as it is counted where the step is handed over.
        lacking: requests of which it is known since the step before that some of their steps were left out.
    """

    number: int
    maps: list[bytes]
    calls: list[tuple[int, int, int, int, dict[int, int], dict[int, int], dict[int, int], list[int] | None]]
    sampled: list[SampledBytes]
    notes: list[str]
    requests: list[Any]
    weight_updates: int
    kernels: dict[str, Any] | None = None
    census: dict[str, Any] | None = None
    padded: int = 0
    company: tuple[int, int, int] | None = None
    finished: Sequence[int] = ()
    flags: Sequence[tuple[int, bytes]] = ()
    dropped: int = 0
    lacking: Sequence[int] = ()


def send(fd: int, message: list[Any]) -> None:
    """Writes a message; waits while the pipe is full.

    Raises:
        OSError: the other process has exited.
    """
    data = pack(message)
    left = memoryview(_LENGTH.pack(len(data)) + data)
    while left:
        left = left[os.write(fd, left) :]


class Inbox:
    """Reads messages from a pipe.

    Args:
        fd: its read end.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._data = bytearray()

    def ready(self, seconds: float | None, others: Sequence[int] = ()) -> bool:
        """Waits so long for the next message, or the end, to begin to arrive; None: as long as it takes.

        Args:
            seconds: to wait.
            others: file descriptors; what can be read there ends the wait, too.
        """
        return bool(self._data) or self.fd in select.select([self.fd, *others], [], [], seconds)[0]

    def next(self) -> list[Any] | None:
        """Waits for the next message; None if the other process has exited, even within a message."""
        while (message := self._whole()) is None:
            more = os.read(self.fd, 1 << 20)
            if not more:
                return None
            self._data += more
        return message

    def _whole(self) -> list[Any] | None:
        if len(self._data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._data)
        end = _LENGTH.size + length
        if len(self._data) < end:
            return None
        message: list[Any] = unpack(bytes(self._data[_LENGTH.size : end]), "the message", own=True)
        del self._data[:end]
        return message
