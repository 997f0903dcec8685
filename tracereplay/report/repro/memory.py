"""Tensors of one call as lines of Python: views of memory where they share it, or lie in it with gaps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np

from tracereplay.dtypes import itemsize
from tracereplay.event import Argument, Value, flatten
from tracereplay.trace import TensorBytes

__all__ = ["Memories", "plain", "row_major"]


class Memories:
    """Where the tensors among some arguments lie.

    Args:
        arguments: of one call.
    """

    def __init__(self, arguments: Sequence[Argument]) -> None:
        groups: dict[tuple[int, str], list[Value]] = {}
        for value in [a for a in flatten(arguments) if isinstance(a, Value)]:
            groups.setdefault((value.storage, value.dtype), []).append(value)
        self._shared = {
            key: values
            for key, values in groups.items()
            if key[0] >= 0 and (len(values) > 1 or values[0].strides != row_major(values[0].shape))
        }

    def place(self, name: str, value: Value, inputs: dict[str, TensorBytes]) -> str:
        """An expression for ``value``, known as ``name``; what it reads is put into ``inputs``."""
        shared = self._shared.get((value.storage, value.dtype))
        if shared is None:
            inputs[name] = plain(value)
            return f"inputs[{json.dumps(name)}]"
        key = f"memory {value.storage} of {value.dtype}"
        start = min(one.start for one in shared)
        inputs.setdefault(key, _memory(shared, start))
        return f'inputs["{key}"].as_strided({value.shape}, {value.strides}, {value.start - start})'


def plain(value: Value) -> TensorBytes:
    """A tensor by itself, row-major."""
    return TensorBytes(value.dtype, value.shape, row_major(value.shape), value.load())


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _memory(values: Sequence[Value], start: int) -> TensorBytes:
    """Elements from the first to the last of some tensors of one dtype, zero where none was recorded."""
    dtype = values[0].dtype
    size = max(value.start + _extent(value) for value in values) - start
    words = np.zeros(size, np.dtype((np.void, itemsize(dtype))))
    for value in values:
        if 0 not in value.shape:
            strides = [stride * words.itemsize for stride in value.strides]
            there = np.lib.stride_tricks.as_strided(words[value.start - start :], value.shape, strides)
            there[...] = np.frombuffer(value.load(), words.dtype).reshape(value.shape)
    return TensorBytes(dtype, (size,), (1,), words.tobytes())


def _extent(value: Value) -> int:
    """Elements from its first to its last."""
    if 0 in value.shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(value.shape, value.strides, strict=True))
