"""Taps: dispatcher ops around an operator's inputs and outputs, alive inside compiled graphs.

Module hooks in Python vanish when a model is compiled; operators that PyTorch's dispatcher knows do not.

    arriving input ──feed──▶ operator ──observe──▶ output
                     │                    │
                     ▼                    ▼
                  listener             listener        (one per process; None: taps do nothing)

``feed`` gives the operator what the listener returns; ``observe`` may overwrite its tensor. All state
lives in the listener: vLLM drops Dynamo's guards, so whatever a wrapper itself reads is frozen at its first
trace. In eager mode the listener is called directly, which is several microseconds cheaper than dispatch.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

__all__ = ["Listener", "listen", "slot_of", "tap"]


class Listener(Protocol):
    """What sees the tensors. It must not raise: it runs inside someone else's engine."""

    def feed(self, x: torch.Tensor, slot: int, index: int) -> torch.Tensor | None:
        """Input ``index`` of the operator at ``slot`` has arrived; returns what it shall take instead."""

    def observe(self, x: torch.Tensor, slot: int, index: int) -> None:
        """Output ``index`` is there; may be overwritten in place."""

    def returned(self, slot: int, taken: Sequence[Any], outputs: Sequence[Any]) -> None:
        """The operator has returned (eager mode only), before its outputs are observed.

        Args:
            slot: which operator.
            taken: its tensor inputs as they are now, in order of their indices.
            outputs: what it returned.
        """


_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Makes ``listener`` the one that all taps of this process speak to."""
    global _listener
    _listener = listener


def slot_of(site: str) -> int:
    """A stable number for a site.

    Why a hash and not a counter: a compiled graph keeps its slot numbers, and a graph that outlives a
    change of the model must not speak in another site's name.
    """
    return int.from_bytes(hashlib.blake2b(site.encode(), digest_size=6).digest(), "little")


def _feed(x: torch.Tensor, slot: int, index: int) -> torch.Tensor:
    given = None if _listener is None else _listener.feed(x, slot, index)
    if given is None or given is x:
        # A functional op must not return its argument: the compiler may reuse the memory of either.
        return x.clone()
    # The compiler was promised the strides of empty_like; others would be read as garbage.
    promised = torch.empty_like(x)
    promised.copy_(given)
    return promised


def _observe(x: torch.Tensor, slot: int, index: int) -> None:
    if _listener is not None:
        _listener.observe(x, slot, index)


# Library.define costs 3 us a call, torch.library.custom_op 24 us (measured on a 2-core CPU).
_library = torch.library.Library("tracereplay", "DEF")
_library.define("feed(Tensor x, int slot, int index) -> Tensor")
# The declared mutation keeps the compiler from removing a tap that nothing depends on.
_library.define("observe(Tensor(a!) x, int slot, int index) -> ()")
_library.impl("feed", _feed, "CompositeExplicitAutograd")
_library.impl("feed", lambda x, slot, index: torch.empty_like(x), "Meta")
_library.impl("observe", _observe, "CompositeExplicitAutograd")
_library.impl("observe", lambda x, slot, index: None, "Meta")


def tap(module: torch.nn.Module, slot: int) -> tuple[str, ...]:
    """Wraps ``module.forward`` of this instance with taps and returns its parameters' names.

    Tensor arguments are numbered 0, 1, ... in the order of the call; parameters of the model are passed
    over, since they are known by name.
    """
    inner = module.forward
    module.forward = wrap(inner, slot)
    return tuple(inspect.signature(inner).parameters)


def wrap(inner: Callable[..., Any], slot: int) -> Callable[..., Any]:
    """``inner`` between a feed of every tensor argument and an observe of every tensor output."""

    def tapped(*args: Any, **kwargs: Any) -> Any:
        compiling = torch.compiler.is_compiling()
        if not compiling and _listener is None:
            return inner(*args, **kwargs)
        index = 0
        fed = []
        taken = list(args)
        for i, value in enumerate(args):
            if _is_data(value):
                taken[i] = _feed_one(value, slot, index, compiling)
                fed.append(taken[i])
                index += 1
        for name, value in kwargs.items():
            if _is_data(value):
                kwargs[name] = _feed_one(value, slot, index, compiling)
                fed.append(kwargs[name])
                index += 1
        result = inner(*taken, **kwargs)
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        if not compiling and _listener is not None:
            _listener.returned(slot, fed, outputs)
        index = 0
        for value in outputs:
            if _is_data(value):
                _observe_one(value, slot, index, compiling)
                index += 1
        return result

    return tapped


def _is_data(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)


def _feed_one(x: torch.Tensor, slot: int, index: int, compiling: bool) -> torch.Tensor:
    if compiling:
        given: torch.Tensor = torch.ops.tracereplay.feed(x, slot, index)
        return given
    given_or_none = None if _listener is None else _listener.feed(x, slot, index)
    return x if given_or_none is None else given_or_none


def _observe_one(x: torch.Tensor, slot: int, index: int, compiling: bool) -> None:
    if compiling:
        torch.ops.tracereplay.observe(x, slot, index)
    elif _listener is not None:
        _listener.observe(x, slot, index)
