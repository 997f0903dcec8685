"""A census: everything that computes in a model's step, whether or not a tap sees it.

Made without the list of taps. Which modules are called is seen by wrapping every module's methods for as long as
a census lasts; what computes, by what PyTorch dispatches meanwhile; and what is observed, by the calls that taps
report while they happen. So an operator without a tap is found like anything else that nobody knew of.

    begin ─▶ [ module called ─▶ (tap: entered ─▶ left) | dispatched ... ]* ─▶ end
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tracereplay.hooks.kernels import declared_writes, returnable, run_seen

__all__ = ["ENTRIES", "Census", "held_besides"]

# The methods by which engines call a module: their own operators may have one for each platform.
ENTRIES = ("forward", "forward_native", "forward_cuda", "forward_hip", "forward_cpu", "forward_xpu", "forward_oot")
_OF_THE_MODEL = ("compute_logits",)

# What moves values and computes none. A cast that changes the dtype is no such move.
_MOVES = frozenset(
    {
        "_to_copy", "alias", "arange", "cat", "clone", "constant_pad_nd", "contiguous", "copy_", "detach",
        "dropout", "empty", "empty_like", "empty_strided", "expand_copy", "fill_", "flip", "full", "full_like",
        "gather", "index", "index_copy_", "index_put", "index_put_", "index_select", "is_pinned", "lift_fresh",
        "masked_fill", "masked_fill_", "masked_select", "new_empty", "new_empty_strided", "new_full", "new_ones",
        "new_zeros", "ones", "ones_like", "pad", "permute_copy", "repeat", "repeat_interleave", "resize_", "roll",
        "scatter", "scatter_", "select_scatter", "set_", "slice_scatter", "sort", "split_with_sizes_copy",
        "squeeze_copy", "stack", "topk", "tril", "triu", "unsqueeze_copy", "view_copy", "where", "zero_", "zeros",
        "zeros_like",
    }
)  # fmt: skip


@dataclass(slots=True)
class _Module:
    """What was seen of a module's calls.

    Args:
        kind: its class.
        calls: how often it was called outside operators.
        operator: whether a tap surrounds it.
        taps: calls of operators under it, itself included.
        computed: dispatched calls that computed floating-point values in it, in no operator and no module below.
    """

    kind: str
    calls: int = 0
    operator: bool = False
    taps: int = 0
    computed: int = 0


@dataclass(slots=True)
class _Stored:
    """A parameter or buffer; ``outside``: modules that took it outside of operators."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parameter: bool
    inside: bool = False
    outside: set[str] = field(default_factory=set)


class _Mode(TorchDispatchMode):  # type: ignore[misc,unused-ignore]
    def __init__(self, census: Census) -> None:
        super().__init__()
        self._census = census

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = self._census.taps, self._census.seen
        result = run_seen(self, func, args, kwargs)
        # Otherwise what ran inside it was counted: an operator, or what an engine's op in Python calls.
        if (self._census.taps, self._census.seen) == before:
            self._census.dispatched(func, args, kwargs, result)
        return returnable(result)


class Census:
    """The census of one model, over as many steps as it is begun and ended around.

    Args:
        model: the engine's; its modules' methods are wrapped between `begin` and `end`.
        of_operators: names of parameters that operators use though they are another module's (the head's).
    """

    def __init__(self, model: torch.nn.Module, of_operators: Iterable[str] = ()) -> None:
        self.taps = self.seen = 0
        self._model = model
        self._names = {id(module): name for name, module in model.named_modules()}
        self._of_operators = frozenset(of_operators)
        self._modules: dict[str, _Module] = {}
        self._stored = dict(_stored(model))
        # Before anything runs: an operator may convert what it holds in its first call.
        self._held = {
            name: [x.untyped_storage().data_ptr() for x in held_besides(module)]
            for name, module in model.named_modules()
        }
        self._stack: list[str] = []
        self._operators = 0  # under way
        self._restore: list[Callable[[], None]] = []

    # -- a step -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Wraps the model's methods."""
        seen = set()
        for module in self._model.modules():
            entries = (*ENTRIES, *_OF_THE_MODEL) if module is self._model else ENTRIES
            for entry in entries:
                if callable(getattr(module, entry, None)):
                    self._wrap(module, entry, functools.partial(self._call, module))
            method = getattr(module, "quant_method", None)
            if callable(getattr(method, "apply", None)) and hasattr(method, "__dict__") and id(method) not in seen:
                seen.add(id(method))
                self._wrap(method, "apply", self._applied)

    def end(self) -> None:
        """Takes the wrappers off."""
        while self._restore:
            self._restore.pop()()
        self._stack.clear()
        self._operators = 0

    def _wrap(self, owner: Any, name: str, call: Callable[..., Any]) -> None:
        """Replaces ``owner.name`` on this instance by ``call(original, ...)``."""
        own = vars(owner)
        before = own.get(name)
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return call(inner, *args, **kwargs)

        def restore() -> None:
            if before is None:
                own.pop(name, None)
            else:
                own[name] = before

        own[name] = wrapped
        self._restore.append(restore)

    def _applied(self, inner: Callable[..., Any], layer: Any, *args: Any, **kwargs: Any) -> Any:
        if id(layer) not in self._names:
            return inner(layer, *args, **kwargs)
        return self._call(layer, functools.partial(inner, layer), *args, **kwargs)

    def _call(self, module: torch.nn.Module, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A module's call; one entry may call another, and what an operator calls is part of it."""
        name = self._names[id(module)]
        if self._operators or name in self._stack:
            return inner(*args, **kwargs)
        found = self._modules.setdefault(name, _Module(type(module).__name__))
        found.calls += 1
        before = self.taps
        self._stack.append(name)
        try:
            if len(self._stack) > 1:
                return inner(*args, **kwargs)
            with _Mode(self):
                return inner(*args, **kwargs)
        finally:
            self._stack.pop()
            found.taps += self.taps - before

    # -- what happens in it -----------------------------------------------------------------------------

    def entered(self) -> None:
        """A tap was called: until `left`, an operator runs."""
        self.taps += 1
        self._operators += 1
        if self._stack:
            self._modules[self._stack[-1]].operator = True

    def left(self) -> None:
        """The operator has returned."""
        self._operators = max(0, self._operators - 1)

    def dispatched(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """PyTorch has run ``func``."""
        self.seen += 1
        where = self._stack[-1] if self._stack else ""
        for x in _tensors([*args, *kwargs.values()]):
            stored = self._stored.get(x.untyped_storage().data_ptr()) if x.layout is torch.strided else None
            if stored is not None and self._operators:
                stored.inside = True
            elif stored is not None:
                stored.outside.add(where)
        if not self._operators and self._stack and _computes(func, args, kwargs, result):
            self._modules[where].computed += 1

    # -- its result -------------------------------------------------------------------------------------

    def found(self) -> dict[str, Any]:
        """All of it as plain data (FORMAT.md, "census").

        A module that computes and has no operator in it is unobserved. So is one that has operators in it and
        takes parameters of its own between them. Where a module computes between its operators and takes none,
        that is an edge: it is compared at the input of the operator that comes next.
        """
        weighing = {name for stored in self._stored.values() if stored.parameter for name in stored.outside}
        unobserved: list[list[Any]] = []
        between: list[list[Any]] = []
        for name, module in self._modules.items():
            if module.operator or not module.computed:
                continue
            row = [name, module.kind, module.calls, module.computed]
            (between if module.taps and name not in weighing else unobserved).append(row)
        operators = [name for name, module in self._modules.items() if module.operator]
        return {
            "operators": len(operators),
            "calls": self.taps,
            "unobserved": sorted(unobserved, key=lambda row: -row[3]),
            "between": sorted(between, key=lambda row: -row[3]),
            "parameters": [
                [s.name, s.dtype, list(s.shape), sorted(s.outside)] for s in self._left_over(operators)
            ],
        }  # fmt: skip

    def _left_over(self, operators: Sequence[str]) -> Iterator[_Stored]:
        """Parameters and buffers that belong to no operator that ran."""
        owners = tuple(f"{name}." for name in operators)
        held = {address for name in operators for address in self._held.get(name, ())}
        for address, stored in self._stored.items():
            owned = stored.name in self._of_operators or stored.name.startswith(owners) or address in held
            if not stored.inside and not owned:
                yield stored


def held_besides(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Tensors that a module holds without registering them, in attributes or in those of objects that it holds.

    Attention's sinks are a parameter of the module around it, which gives them to the attention's backend.
    """
    plain = [value for value in vars(module).values() if not isinstance(value, (torch.nn.Module, dict))]
    for value in plain:
        if isinstance(value, torch.Tensor):
            yield value
        elif not isinstance(value, type):
            yield from (x for x in getattr(value, "__dict__", {}).values() if isinstance(x, torch.Tensor))


def _stored(model: torch.nn.Module) -> Iterator[tuple[int, _Stored]]:
    every = [(True, *p) for p in model.named_parameters()] + [(False, *b) for b in model.named_buffers()]
    for is_parameter, name, x in every:
        if x.layout is torch.strided and x.numel():
            dtype = str(x.dtype).removeprefix("torch.")
            yield x.untyped_storage().data_ptr(), _Stored(name, dtype, tuple(x.shape), is_parameter)


def _computes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> bool:
    """Whether ``func`` made floating-point values that are not those which it was given."""
    if func.is_view:
        return False
    made = [x for x in _tensors(_listed(result)) if x.is_floating_point()]
    namespace, _, name = func.name().partition("::")
    name = name.partition(".")[0]
    if namespace == "aten" and name in _MOVES:
        given = {x.dtype for x in _tensors(args) if x.is_floating_point()}
        return name == "_to_copy" and any(x.dtype not in given for x in made)
    if made:
        return True
    places, names = declared_writes(func)
    written = [args[i] for i in places if i < len(args)] + [kwargs[name] for name in names if name in kwargs]
    return any(x.is_floating_point() for x in _tensors(written))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
