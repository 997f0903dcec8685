"""Kernels: what PyTorch dispatches while an operator runs, and Triton kernels that are launched past it.

    with watching(listener):          while one operator runs
        operator(...)                 ──▶ listener.begin(...), listener.end(...) for each kernel
                                      ──▶ listener.launch(...), listener.end(...) for each of Triton's

Composite operators (``aten.linear``) are taken apart, as PyTorch does itself where no inference mode is on: what
runs is what they consist of. A custom operator that is written in Python is seen and looked into, where the
engine has said so (`look_into`). `hooks.triton` sees Triton's launches.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tracereplay.hooks.launched import Launch
from tracereplay.hooks.triton import launches

__all__ = ["KernelListener", "declared_writes", "look_into", "returnable", "run_seen", "unseen", "watching"]

_looked_into: set[str] = set()
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
_has_computed_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key


def look_into(namespace: str) -> None:
    """Operators of this namespace are Python functions over other operators; those are seen too."""
    _looked_into.add(namespace)


class KernelListener(Protocol):
    """What sees the kernels. It must not raise, and what it calls is not seen."""

    def begin(
        self, name: str, op: torch._ops.OpOverload, arguments: Sequence[Any], keywords: Mapping[str, Any]
    ) -> Any:
        """A kernel is about to run.

        Args:
            name: ``aten.mm.default``.
            op: the operator.
            arguments, keywords: as given.

        Returns:
            What ``end`` shall be told.
        """

    def launch(self, launch: Launch) -> Any:
        """A Triton kernel is about to run, past the dispatcher. Returns what ``end`` shall be told."""

    def end(self, kernel: Any, result: Any, error: BaseException | None) -> None:
        """It has returned ``result``, or raised ``error``."""


class _Mode(TorchDispatchMode):  # type: ignore[misc,unused-ignore]
    def __init__(self, listener: KernelListener) -> None:
        super().__init__()
        self._listener = listener

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Lets a function that `torch.compile` compiled run compiled, as it does where nobody watches.

        Dynamo skips it under other modes, and other bits are computed. What is compiled is seen by `hooks.triton`.
        """
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        backend = _backend(args, kwargs)
        if _is_composite(func, backend):
            with self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        kernel = self._listener.begin(_name(func), func, args, kwargs)
        try:
            result = run_seen(self, func, args, kwargs)
        except BaseException as error:
            self._listener.end(kernel, None, error)
            raise
        self._listener.end(kernel, _as_it_was(result), None)
        return returnable(result)


def run_seen(mode: TorchDispatchMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs ``func`` from within ``mode``, which sees what it calls if it is to be looked into."""
    backend = _backend(args, kwargs)
    if func.namespace not in _looked_into or not backend or not _has_computed_kernel(func.name(), backend):
        return func(*args, **kwargs)
    # Past the key at which the mode listens, straight to the function: the mode sees what that calls.
    with mode:
        return func._op_dk(getattr(torch._C.DispatchKey, backend), *args, **kwargs)


def returnable(result: Any) -> Any:
    """``result`` with an empty tensor for each undefined one in a list.

    C++ kernels may leave members of a ``Tensor[]`` undefined (FlashAttention 3 does, with two of its four). Python
    sees None, which PyTorch cannot turn back when a dispatch mode returns it.
    """
    like = next((x for x in result if isinstance(x, torch.Tensor)), None) if type(result) is list else None
    if like is not None:
        return [_stand_in(like) if x is None else x for x in result]
    return result


def _stand_in(like: torch.Tensor) -> torch.Tensor:
    x = like.new_empty(0)
    x._tracereplay_undefined = True
    return x


def _as_it_was(result: Any) -> Any:
    """``result`` before another mode of ours made it `returnable`: one within this one, of a census."""
    if type(result) is list:
        return [None if getattr(x, "_tracereplay_undefined", False) else x for x in result]
    return result


def _backend(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The dispatch key of the first tensor's device; empty where there is no tensor."""
    found = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
    return "" if found is None else _key_of(found.device.type)


@functools.cache
def _key_of(device: str) -> str:
    return str(torch._C._dispatch_key_for_device(device))


@functools.cache
def _is_composite(op: Any, backend: str) -> bool:
    """Whether PyTorch has nothing for ``op`` but a function over other operators.

    Only PyTorch's own: an engine's C++ kernels that are registered for any device look the same, and are kernels.
    Why not `OpOverload.decompose`: it prefers decompositions in Python, which compute other bits than what runs.
    """
    name = op.name()
    return (
        op.namespace == "aten"
        and _has_kernel(name, "CompositeImplicitAutograd")
        and not (backend and _has_kernel(name, backend))
    )


@functools.cache
def _name(op: Any) -> str:
    """``namespace.operator.overload`` of a ``torch._ops.OpOverload``."""
    return str(op)


@functools.cache
def declared_writes(op: Any) -> tuple[frozenset[int], frozenset[str]]:
    """Positions and names of the arguments that a schema declares as written."""
    arguments = op._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    return frozenset(written), frozenset(arguments[i].name for i in written)


@contextlib.contextmanager
def watching(listener: KernelListener) -> Iterator[None]:
    """Tells ``listener`` of every kernel that this thread runs."""
    with _Mode(listener), launches(listener):
        yield


def unseen() -> contextlib.AbstractContextManager[Any]:
    """Hides from the listener what runs in this context: the recorder's own work."""
    hidden: contextlib.AbstractContextManager[Any] = _disable_current_modes()
    return hidden
