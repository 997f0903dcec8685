"""Tensors of recorded calls restored with their memory layout, and results as bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tracereplay.alone.child.service import NotReplayable
from tracereplay.dtypes import itemsize
from tracereplay.trace import TensorBytes

__all__ = ["lay_out", "plain"]

_ALIGNED = 64  # bytes; what torch's allocator gives
MOST = 2 << 30  # bytes that the memory of one call may span


def lay_out(tensors: Sequence[TensorBytes]) -> list[torch.Tensor]:
    """Creates tensors with their shapes, strides and offsets; those of one storage share memory again.

    Memory has room for all elements of each tensor one after the other, whatever its strides: a kernel that
    takes its arguments to be contiguous reads wrong numbers then, and stays within the storage.

    Raises:
        NotReplayable: a dtype that this torch lacks, or memory of more than `MOST` bytes.
    """
    groups: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault(i if tensor.storage < 0 else ("storage", tensor.storage), []).append(i)
    found: dict[int, torch.Tensor] = {}
    for group in groups.values():
        found.update(zip(group, _share([tensors[i] for i in group]), strict=True))
    return [found[i] for i in range(len(tensors))]


def _share(tensors: Sequence[TensorBytes]) -> list[torch.Tensor]:
    """Tensors of one storage; only the part of it between their first and last element is made."""
    starts = [tensor.start * itemsize(tensor.dtype) for tensor in tensors]
    base = min(starts) // _ALIGNED * _ALIGNED
    end = max(start + _span(tensor) for start, tensor in zip(starts, tensors, strict=True))
    size = -(-(end - base) // _ALIGNED) * _ALIGNED
    if size > MOST:
        raise NotReplayable(f"its tensors span {size} bytes of memory; {MOST} are allowed")
    memory = torch.zeros(size, dtype=torch.uint8)
    return [_place(memory, start - base, tensor) for start, tensor in zip(starts, tensors, strict=True)]


def _span(tensor: TensorBytes) -> int:
    """Bytes from its first element on that it needs."""
    size = itemsize(tensor.dtype)
    if 0 in tensor.shape:
        return 0
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    return max(last + 1, math.prod(tensor.shape)) * size


def _place(memory: torch.Tensor, offset: int, tensor: TensorBytes) -> torch.Tensor:
    dtype = getattr(torch, tensor.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise NotReplayable(f"this torch has no dtype {tensor.dtype}")
    if 0 in tensor.shape:
        return torch.empty_strided(tensor.shape, tensor.strides, dtype=dtype)
    size = itemsize(tensor.dtype)
    word = np.dtype((np.void, size))
    there = np.lib.stride_tricks.as_strided(
        memory.numpy()[offset:].view(word), tensor.shape, [stride * size for stride in tensor.strides]
    )  # fmt: skip
    there[...] = np.frombuffer(tensor.data, word).reshape(tensor.shape)
    return memory.view(dtype).as_strided(list(tensor.shape), list(tensor.strides), offset // size)


def plain(value: Any) -> Any:
    """A result as plain data and `TensorBytes`; elements are row-major, strides those that the tensor has."""
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if not isinstance(value, torch.Tensor):
        return value if isinstance(value, (int, float, bool, str, type(None))) else str(value)
    dtype = str(value.dtype).removeprefix("torch.")
    flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return TensorBytes(dtype, tuple(value.shape), tuple(value.stride()), data)
