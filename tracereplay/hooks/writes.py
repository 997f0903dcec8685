"""Tells what memory is written to, by what PyTorch dispatches and by Triton kernels that are launched past it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tracereplay.hooks.computing import tensors, written_by
from tracereplay.hooks.kernels import returnable
from tracereplay.hooks.launched import GRAPH, Launch
from tracereplay.hooks.triton import launches

__all__ = ["CAN_WATCH", "Writes", "watching_writes"]

CAN_WATCH = hasattr(TorchDispatchMode, "ignore_compile_internals")  # else compiled code would not run compiled


class Writes(Protocol):
    """What is told of writes. It must not raise.

    Attributes:
        within: how many calls are under way whose own work is not seen.
    """

    within: int

    def written(self, x: torch.Tensor) -> None:
        """Something is written to the memory of ``x``, or may be."""

    def unknown(self) -> None:
        """Something may be written to any memory."""


@contextlib.contextmanager
def watching_writes(writes: Writes) -> Iterator[None]:
    """Tells ``writes`` of what this thread dispatches or launches that may write to memory.

    What a Triton kernel was given counts as written: nothing declares what it writes. Where `CAN_WATCH`.
    """
    with _Dispatched(writes), launches(_Launched(writes)):
        yield


class _Dispatched(TorchDispatchMode):  # type: ignore[misc,unused-ignore]
    supports_higher_order_operators = True

    def __init__(self, writes: Writes) -> None:
        super().__init__()
        self._writes = writes

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Lets compiled functions run compiled, as `hooks.kernels` does: a graph must hold what runs without."""
        return True

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "namespace", "") == "tracereplay":
            # A tap, which declares that it writes, and within which taps are told.
            return function(*args, **kwargs)
        writes, given = self._writes, written_by(function, args, kwargs)
        _tell(writes, given)
        writes.within += 1
        try:
            return returnable(function(*args, **kwargs))
        finally:
            writes.within -= 1
            _tell(writes, given)  # it may have written after something within it was staged


class _Launched:
    """See `hooks.triton.LaunchListener`."""

    def __init__(self, writes: Writes) -> None:
        self._writes = writes

    def launch(self, launch: Launch) -> list[torch.Tensor] | None:
        followed = launch.name == GRAPH or (launch.declaration and not launch.unfollowed)
        given = list(tensors(launch.arguments.values())) if followed else None
        _tell(self._writes, given)
        return given

    def end(self, kernel: Any, result: Any, error: BaseException | None) -> None:
        _tell(self._writes, kernel)


def _tell(writes: Writes, given: list[torch.Tensor] | None) -> None:
    try:
        for x in given or ():
            if x.layout is torch.strided:
                writes.written(x)
    except Exception:  # a tensor whose memory has no address
        given = None
    if given is None:
        writes.unknown()
