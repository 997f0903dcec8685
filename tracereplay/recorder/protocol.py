"""What the engine's process and the writer process say to each other: msgpack lists, each behind its length.

engine ─▶ writer   ["open", path, meta, codec, max_bytes, [fd of each arena]]
                   ["sites", [...]]                     see `trace.records`
                   ["tensors", arena, size, [...], [...]]   what lies in the arena, of this step: `Descriptor`s of
                                                        values, and offset and size of what is no value
                   ["release"]                          give back the arenas of the step that is under way
                   ["step", ...]                        the step is whole: see `StepMessage`
                   ["discard"]                          the engine gave the step up
                   ["close", summary, whole]            end the segment; not whole: without an end mark
writer ─▶ engine   ["here", pid]   ["free", arena]   ["wrote", steps, bytes]   ["spent"]
                     ["failed", text]   ["closed"]
"""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

from tracereplay.trace.plain import pack, unpack

__all__ = ["Descriptor", "Inbox", "SampledBytes", "StepMessage", "send"]

_LENGTH = struct.Struct("<I")


class Descriptor(NamedTuple):
    """A tensor in an arena: `trace.TensorBytes`, its bytes by their place."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    size: int
    storage: int
    start: int


class SampledBytes(NamedTuple):
    """Tokens that were sampled; the numbers are places among the step's bytes that are no values.

    Args:
        keys: (request, sequence, position) of each.
        tokens, choices: of int64 tensors.
        logprobs: of a float32 tensor; -1 without.
    """

    keys: list[tuple[int, int, int]]
    tokens: int
    choices: int
    logprobs: int


class StepMessage(NamedTuple):
    """A step whose tensors were sent; they are spoken of by their place in the order in which they came.

    Args:
        number: of the step.
        maps: row maps as bytes; the first is the step's own.
        calls: slot, number, places of the rows in and out in ``maps``, and tensors of inputs, outputs and inputs
            after.
        sampled, notes, requests, weight_updates: see `event.Step`; requests as `trace.records` writes them.
        kernels: a record of `trace.kernels`; None unless kernels are recorded.
    """

    number: int
    maps: list[bytes]
    calls: list[tuple[int, int, int, int, dict[int, int], dict[int, int], dict[int, int]]]
    sampled: list[SampledBytes]
    notes: list[str]
    requests: list[Any]
    weight_updates: int
    kernels: dict[str, Any] | None = None


def send(fd: int, message: list[Any]) -> None:
    """Writes a message; waits while the pipe is full.

    Raises:
        OSError: the other side is gone.
    """
    data = pack(message)
    left = memoryview(_LENGTH.pack(len(data)) + data)
    while left:
        left = left[os.write(fd, left) :]


class Inbox:
    """Messages out of a pipe.

    Args:
        fd: its reading end.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._data = bytearray()

    def next(self) -> list[Any] | None:
        """The next message; waits for it. None once the other side is gone, whatever it had begun to say."""
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
