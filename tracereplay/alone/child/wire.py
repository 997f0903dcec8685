"""The protocol between a sandbox and its child: plain data that may contain tensors anywhere.

    message   head (uint32 bytes), number of tensors (uint32), bytes of each tensor (uint64 ...), head, tensors
    head      msgpack of [body, [[dtype, shape, strides, storage, start] of each tensor]]

In the body a tensor is ``{"\\0tensor": number}``. Why tensors stand behind the head: so their bytes go from where
they lie to the socket, and from the socket to where they will lie, without a copy between.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

from tracereplay.dtypes import DTYPES, nbytes
from tracereplay.trace import TensorBytes
from tracereplay.trace.plain import pack, unpack

__all__ = ["LARGEST", "Channel", "Closed", "TooLarge"]

LARGEST = 2 << 30  # bytes of a message, by default
MAX_HEAD = 16 << 20
MAX_TENSORS = 4096
_BEGIN = struct.Struct("<II")
_MARK = "\0tensor"
_PIECES = 64  # buffers handed to the system at once


class Closed(Exception):
    """The other side is gone."""


class TooLarge(Exception):
    """A message is too large or invalid; the text is a sentence."""


class Channel:
    """Messages over a connected stream socket.

    Args:
        sock: this side's end.
        largest: bytes that a message may have, tensors included.
    """

    def __init__(self, sock: socket.socket, largest: int = LARGEST) -> None:
        self._socket = sock
        self.largest = largest

    def send(self, body: Any, deadline: float | None = None) -> None:
        """Writes a message.

        Args:
            body: plain data and `TensorBytes`.
            deadline: of `time.monotonic`.

        Raises:
            TooLarge: it is larger than agreed; nothing was sent.
            TimeoutError, Closed: see `receive`.
        """
        tensors: list[TensorBytes] = []
        plain = _without_tensors(body, tensors)
        described = [[t.dtype, list(t.shape), list(t.strides), t.storage, t.start] for t in tensors]
        head = pack([plain, described])
        parts = [memoryview(t.data).cast("B") for t in tensors if len(t.data)]
        sizes = [memoryview(t.data).nbytes for t in tensors]
        self._check(len(head), sizes)
        begin = _BEGIN.pack(len(head), len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
        self._write([memoryview(begin), memoryview(head), *parts], deadline)

    def receive(self, deadline: float | None = None) -> Any:
        """Waits for a message.

        Raises:
            Closed: the other side is gone, even in the middle of a message.
            TimeoutError: the deadline has passed.
            TooLarge: it is larger than agreed, or is not what `send` writes. Nothing more can be read then.
        """
        length, count = _BEGIN.unpack(self._read(_BEGIN.size, deadline))
        if count > MAX_TENSORS:
            raise TooLarge(f"A message has {count} tensors; {MAX_TENSORS} are allowed.")
        sizes = struct.unpack(f"<{count}Q", self._read(8 * count, deadline))
        self._check(length, sizes)
        head = self._read(length, deadline)
        data = [self._read(size, deadline) for size in sizes]
        try:
            body, described = unpack(bytes(head), "the message")
            tensors = [_tensor(d, b) for d, b in zip(described, data, strict=True)]
            return _with_tensors(body, tensors)
        except TooLarge:
            raise
        except Exception as error:
            raise TooLarge(f"A message cannot be understood: {error}") from error

    def _check(self, head: int, sizes: Sequence[int]) -> None:
        if head > MAX_HEAD or len(sizes) > MAX_TENSORS:
            raise TooLarge(
                f"A message has {head} bytes beside its tensors and {len(sizes)} tensors; {MAX_HEAD} bytes and "
                f"{MAX_TENSORS} tensors are allowed."
            )
        if sum(sizes) > self.largest:
            raise TooLarge(f"The tensors of a message have {sum(sizes)} bytes; {self.largest} are allowed.")

    def _write(self, parts: list[memoryview], deadline: float | None) -> None:
        while parts:
            self._set(deadline)
            try:
                sent = self._socket.sendmsg(parts[:_PIECES])
            except (BrokenPipeError, ConnectionResetError) as error:
                raise Closed from error
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]

    def _read(self, size: int, deadline: float | None) -> bytearray:
        data = bytearray(size)
        left = memoryview(data)
        while left:
            self._set(deadline)
            try:
                got = self._socket.recv_into(left)
            except ConnectionResetError as error:
                raise Closed from error
            if not got:
                raise Closed
            left = left[got:]
        return data

    def _set(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


def _without_tensors(value: Any, tensors: list[TensorBytes]) -> Any:
    if isinstance(value, TensorBytes):
        tensors.append(value)
        return {_MARK: len(tensors) - 1}
    if isinstance(value, dict):
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, tensors) for item in value]
    return value


def _with_tensors(value: Any, tensors: Sequence[TensorBytes]) -> Any:
    if isinstance(value, dict):
        if _MARK in value:
            return tensors[value[_MARK]]
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value


def _tensor(described: Sequence[Any], data: bytearray) -> TensorBytes:
    dtype, shape, strides, storage, start = described
    sound = dtype in DTYPES and all(type(n) is int and n >= 0 for n in shape) and len(strides) == len(shape)
    if not sound or nbytes(dtype, tuple(shape)) != len(data):
        raise TooLarge(
            f"A tensor of {len(data)} bytes is said to be {str(dtype)[:32]} of shape {str(shape)[:99]}."
        )
    return TensorBytes(dtype, tuple(shape), tuple(strides), memoryview(data), storage, start)
