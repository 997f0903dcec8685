"""Taps: dispatcher ops around an operator's inputs and outputs, kept in compiled graphs.

Module hooks in Python vanish when a model is compiled; operators that PyTorch's dispatcher knows do not.

    arriving input ──feed──▶ operator ──observe──▶ output
                     │                    │
                     ▼                    ▼
                  listener             listener        (one per process; None: taps do nothing)

``feed`` gives the operator what the listener returns; ``observe`` may overwrite its tensor. All state
lives in the listener: an engine may drop Dynamo's guards, so whatever a wrapper itself reads is frozen at its
first trace. In eager mode the listener is called directly, once for all inputs of a call and once for all outputs:
the dispatcher takes several microseconds more for each tensor.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Container, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

__all__ = ["Listener", "listen", "slot_of", "tap", "unlisten"]


class Listener(Protocol):
    """What sees the tensors. It must not raise: it runs in someone else's process.

    A compiled graph calls ``feed`` and ``observe``, eager code ``arrived`` and ``returned``.
    """

    @property
    def watched(self) -> Container[int]:
        """Slots of which it wants to see calls now (asked in eager mode only)."""

    @property
    def scope(self) -> Callable[[Any], AbstractContextManager[Any]] | None:
        """The context of an eager call, made from what ``arrived`` returned; None: no context."""

    def feed(self, x: torch.Tensor, slot: int, index: int) -> torch.Tensor | None:
        """Input ``index`` of the operator at ``slot`` has arrived; returns what it shall take instead."""

    def observe(self, x: torch.Tensor, slot: int, index: int) -> None:
        """Output ``index`` is there; may be overwritten in place."""

    def arrived(self, slot: int, inputs: list[torch.Tensor]) -> tuple[Any, list[torch.Tensor]]:
        """The operator at ``slot`` is called.

        Returns:
            What ``returned`` shall be told of the call, and what the operator shall take (``inputs`` itself:
            these).
        """

    def returned(self, call: Any, taken: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        """The operator has returned ``outputs``, which may be overwritten in place.

        Args:
            call: what ``arrived`` returned.
            taken: the inputs as they are now, in order of their indices.
            outputs: in order of their indices.
        """


_listener: Listener | None = None
_is_compiling = torch.compiler.is_compiling


def listen(listener: Listener | None) -> None:
    """Makes ``listener`` the one that all taps of this process speak to."""
    global _listener
    _listener = listener


def unlisten(listener: object) -> None:
    """Lets go of ``listener``, unless another has taken its place."""
    if _listener is listener:
        listen(None)


def slot_of(site: str) -> int:
    """A stable number for a site.

    Why a hash and not a counter: a compiled graph keeps its slot numbers, and a graph that outlives a
    change of the model must not speak in another site's name.
    """
    return int.from_bytes(hashlib.blake2b(site.encode(), digest_size=6).digest(), "little")


def _feed(x: torch.Tensor, slot: int, index: int) -> torch.Tensor:
    listener = _listener  # another thread may let go of it
    given = None if listener is None else listener.feed(x, slot, index)
    if given is None or given is x:
        # A functional op must not return its argument: the compiler may reuse the memory of either.
        return x.clone()
    # The compiler was promised the strides of empty_like; others would be read as garbage.
    promised = torch.empty_like(x)
    promised.copy_(given)
    return promised


def _observe(x: torch.Tensor, slot: int, index: int) -> None:
    listener = _listener
    if listener is not None:
        listener.observe(x, slot, index)


def _arrive(x: torch.Tensor, slot: int, index: int) -> None:
    """`_feed` where nothing is ever fed (`hooks.thinning`): the operator takes ``x`` itself, without a copy."""
    listener = _listener
    if listener is not None:
        listener.feed(x, slot, index)


# Library.define costs 3 us a call, torch.library.custom_op 24 us (measured on a 2-core CPU).
_library = torch.library.Library("tracereplay", "DEF")
_library.define("feed(Tensor x, int slot, int index) -> Tensor")
# The declared mutation keeps the compiler from removing a tap that nothing depends on.
_library.define("observe(Tensor(a!) x, int slot, int index) -> ()")
_library.impl("feed", _feed, "CompositeExplicitAutograd")
_library.impl("feed", lambda x, slot, index: torch.empty_like(x), "Meta")
_library.define("arrive(Tensor(a!) x, int slot, int index) -> ()")
_library.impl("observe", _observe, "CompositeExplicitAutograd")
_library.impl("observe", lambda x, slot, index: None, "Meta")
_library.impl("arrive", _arrive, "CompositeExplicitAutograd")
_library.impl("arrive", lambda x, slot, index: None, "Meta")


def tap(
    module: torch.nn.Module, slot: int, entries: Mapping[str, Callable[..., Any]], *, eager: bool = True
) -> tuple[str, ...]:
    """Wraps each way into this instance with taps and returns the names of the parameters of ``forward``.

    Tensor arguments are numbered 0, 1, ... in the order of the call; parameters of the model are passed
    over, since they are known by name. An argument that is called ``output`` is where some operators of engines
    write what they compute: it is an output, and comes after those that are returned.

    Args:
        module: an operator.
        slot: of its site.
        entries: its methods that the engine calls, by name, as they are without a tap. One may call another: the
            outermost is the call.
        eager: whether no compiler will trace the module. If one does, only ``forward`` has taps while the engine
            runs: its own ops call the others then, when nothing tells that the operator's call is under way.
    """
    busy: list[int] = []
    for name, inner in entries.items():
        into = _position_of_written(inner)
        setattr(module, name, wrap(inner, slot, busy, into, traced_only=not eager and name != "forward"))
    return _names(entries["forward"], entries.get("forward_native") or getattr(module, "forward_native", None))


_WRITTEN = "output"  # the parameter by which an operator is given the tensor to write to


def _position_of_written(entry: Callable[..., Any]) -> int | None:
    """Of the parameter that is written to; None: the entry has none."""
    names = list(inspect.signature(entry).parameters)
    return names.index(_WRITTEN) if _WRITTEN in names else None


def _names(forward: Callable[..., Any], native: Callable[..., Any] | None) -> tuple[str, ...]:
    """The names of an operator's inputs; where its ``forward`` takes any and passes them on, of what it calls."""
    for entry in filter(None, (forward, native)):
        found = inspect.signature(entry).parameters
        if not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in found.values()):
            return tuple(name for name in found if name != _WRITTEN)
    return tuple(inspect.signature(forward).parameters)


def wrap(
    inner: Callable[..., Any], slot: int, busy: list[int], into: int | None = None, *, traced_only: bool = False
) -> Callable[..., Any]:
    """``inner`` between a feed of every tensor argument and an observe of every tensor output.

    Args:
        busy: not empty while a call of this operator is under way; shared by all its entries. A list, since
            Dynamo follows its changes.
        into: position of the argument that the operator writes to, if it has one.
        traced_only: whether a call counts only if the compiler traces it.
    """

    def tapped(*args: Any, **kwargs: Any) -> Any:
        if busy or (traced_only and not _is_compiling()):
            return inner(*args, **kwargs)
        busy.append(slot)
        try:
            if _is_compiling():
                return _traced(inner, slot, args, kwargs, into)
            listener = _listener
            if listener is None or slot not in listener.watched:
                return inner(*args, **kwargs)
            return _watched(listener, inner, slot, args, kwargs, into)
        finally:
            busy.pop()

    return tapped


def _watched(
    listener: Listener, inner: Callable[..., Any], slot: int, args: tuple[Any, ...], kwargs: dict[str, Any],
    into: int | None,
) -> Any:  # fmt: skip
    """A call in eager mode."""
    values = [*args, *kwargs.values()]
    places = [i for i, value in enumerate(values) if type(value) is torch.Tensor or _is_data(value)]
    written = None
    if into is not None:
        at = into if into < len(args) else len(args) + list(kwargs).index(_WRITTEN)
        written = values[at]
        places = [i for i in places if i != at]
    taken = [values[i] for i in places]
    call, given = listener.arrived(slot, taken)
    if given is not taken:
        taken = given
        for i, value in zip(places, given, strict=True):
            values[i] = value
        args = tuple(values[: len(args)])
        kwargs = dict(zip(kwargs, values[len(args) :], strict=True))
    if listener.scope is None:
        result = inner(*args, **kwargs)
    else:
        with listener.scope(call):
            result = inner(*args, **kwargs)
    outputs = (*(result if isinstance(result, (tuple, list)) else (result,)), written)
    found = [value for value in outputs if type(value) is torch.Tensor or _is_data(value)]
    listener.returned(call, taken, found)
    return result


def _traced(
    inner: Callable[..., Any], slot: int, args: tuple[Any, ...], kwargs: dict[str, Any], into: int | None
) -> Any:
    """A call that the compiler traces: what is left of it are the two ops."""
    index = 0
    taken = list(args)
    for i, value in enumerate(args):
        if _is_data(value) and i != into:
            taken[i] = torch.ops.tracereplay.feed(value, slot, index)
            index += 1
    for name, value in kwargs.items():
        if _is_data(value) and (into is None or name != _WRITTEN):
            kwargs[name] = torch.ops.tracereplay.feed(value, slot, index)
            index += 1
    result = inner(*taken, **kwargs)
    index = 0
    written = None if into is None else args[into] if into < len(args) else kwargs[_WRITTEN]
    for value in (*(result if isinstance(result, (tuple, list)) else (result,)), written):
        if _is_data(value):
            torch.ops.tracereplay.observe(value, slot, index)
            index += 1
    return result


def _is_data(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)
