"""A census: everything that computes in a model's step, whether or not a tap sees it.

Made without the list of taps. Which modules are called is seen by wrapping every module's methods for as long as
a census lasts; what computes, by what PyTorch dispatches meanwhile; and what is observed, by the calls that taps
report while they happen. So an operator without a tap is found like anything else that nobody knew of.

    begin ─▶ [ module called ─▶ (tap: entered ─▶ left) | dispatched ... ]* ─▶ end

A compiled module runs none of its Python code. Where one is called, what its compiler traced of it counts instead
(`hooks.graphs`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tracereplay.event import Site
from tracereplay.hooks.computing import computes, tensors
from tracereplay.hooks.graphs import Traced, TracedNode
from tracereplay.hooks.kernels import returnable, run_seen
from tracereplay.hooks.launched import Launch
from tracereplay.hooks.triton import launches, no_launches

__all__ = ["ENTRIES", "Census", "held_besides"]

# The methods by which engines call a module: their own operators may have one for each platform.
ENTRIES = ("forward", "forward_native", "forward_cuda", "forward_hip", "forward_cpu", "forward_xpu", "forward_oot")
_OF_THE_MODEL = ("compute_logits",)


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

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Lets compiled functions run compiled, as `hooks.kernels` does; `_Launches` sees their graphs."""
        return True

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


class _Launches:
    """Triton kernels, and graphs that Inductor compiled: a `hooks.triton.LaunchListener`."""

    def __init__(self, census: Census) -> None:
        self._census = census

    def launch(self, launch: Launch) -> Any:
        given = list(tensors(launch.arguments.values()))
        self._census.take(given)
        return given, self._census.taps, self._census.seen

    def end(self, kernel: Any, result: Any, error: BaseException | None) -> None:
        given, *before = kernel
        if [self._census.taps, self._census.seen] == before:
            self._census.launched(given, result)


class Census:
    """The census of one model, over as many steps as it is begun and ended around.

    Args:
        model: the engine's; its modules' methods are wrapped between `begin` and `end`.
        sites: its operators.
        graphs: what a compiler traced, for each module that is compiled.
    """

    def __init__(
        self, model: torch.nn.Module, sites: Sequence[Site], graphs: Mapping[torch.nn.Module, Traced] | None = None
    ) -> None:
        self.taps = self.seen = 0
        self._model = model
        self._graphs = dict(graphs or {})
        self._sites = {site.slot: site.name for site in sites}
        self._names = {id(module): name for name, module in model.named_modules()}
        # Of these some are another module's: the logits processor uses the head's.
        self._of_operators = frozenset(p.name for site in sites for p in site.parameters)
        self._modules: dict[str, _Module] = {}
        self._stored = _stored(model)
        self._by_name = {name: self._stored[_address(x)] for name, x in _tensors_of(model)}
        # Before anything runs: an operator may convert what it holds in its first call.
        self._held = {
            name: [_address(x) for x in (*held_besides(module), *module.parameters(), *module.buffers())]
            for name, module in model.named_modules()
        }
        self._stack: dict[str, int] = {}  # modules under way, each with the calls of operators before it
        self._operators = 0  # under way
        self._mode: _Mode | None = None  # while the model runs
        self._restore: list[Callable[[], None]] = []

    # -- a step -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Wraps the model's methods, save those of compiled modules."""
        compiled = {id(module) for root in self._graphs for module in root.modules()}
        seen = set()
        for module in self._model.modules():
            entries = () if id(module) in compiled else ENTRIES
            for entry in (*entries, *_OF_THE_MODEL) if module is self._model else entries:
                if callable(getattr(module, entry, None)):
                    self._wrap(module, entry, functools.partial(self._call, module))
            method = getattr(module, "quant_method", None) if entries else None
            if callable(getattr(method, "apply", None)) and hasattr(method, "__dict__") and id(method) not in seen:
                seen.add(id(method))
                self._wrap(method, "apply", self._applied)
        for root, graph in self._graphs.items():
            self._wrap_compiled(root, graph)

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
            if torch.compiler.is_compiling():  # nothing of ours is to be traced
                return inner(*args, **kwargs)
            return call(inner, *args, **kwargs)

        def restore() -> None:
            if before is None:
                own.pop(name, None)
            else:
                own[name] = before

        own[name] = wrapped
        self._restore.append(restore)

    def _wrap_compiled(self, root: torch.nn.Module, graph: Traced) -> None:
        """Wraps the way in which ``root`` is called. That is its class's: what is compiled is not touched."""
        kind = type(root)
        own, call = vars(kind).get("__call__"), kind.__call__

        @functools.wraps(call)
        def wrapped(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module is not root:
                return call(module, *args, **kwargs)
            return self._call_compiled(root, graph, functools.partial(call, module), *args, **kwargs)

        def restore() -> None:
            if own is None:
                del kind.__call__
            else:
                kind.__call__ = own

        kind.__call__ = wrapped
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
        self._open(name, module)
        try:
            if self._mode is not None:
                return inner(*args, **kwargs)
            self._mode = _Mode(self)
            try:
                with self._mode, launches(_Launches(self)):
                    return inner(*args, **kwargs)
            finally:
                self._mode = None
        finally:
            self._close()

    def _open(self, name: str, module: torch.nn.Module) -> None:
        """``module`` is called."""
        self._modules.setdefault(name, _Module(type(module).__name__)).calls += 1
        self._stack[name] = self.taps

    def _close(self) -> None:
        """The last module that was called has returned."""
        name, before = self._stack.popitem()
        self._modules[name].taps += self.taps - before

    # -- what a compiler traced -------------------------------------------------------------------------

    def _call_compiled(
        self, root: torch.nn.Module, graph: Traced, inner: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Counts what is in ``graph`` and none of the kernels that run for it."""
        taps, operators, mode = self.taps, self._operators, self._mode
        if mode is not None:
            mode.__exit__(None, None, None)
        try:
            with no_launches():
                return inner(*args, **kwargs)
        finally:
            if mode is not None:
                mode.__enter__()
            self.taps, self._operators = taps, operators
            self._follow(root, graph)

    def _follow(self, root: torch.nn.Module, graph: Traced) -> None:
        """Counts ``graph`` as if its nodes ran now."""
        modules = {str(id(module)): module for module in root.modules()}
        prefix = f"{self._names[id(root)]}."
        under_way: list[str] = []
        for node in graph.nodes:
            if not self._operators:  # what an operator calls is part of it
                called = [key for key in node.modules if key.partition("@")[0] in modules]
                self._go_to(under_way, called, modules)
                under_way = called
            self._follow_node(node, prefix)
        self._go_to(under_way, [], modules)

    def _go_to(
        self, under_way: Sequence[str], called: Sequence[str], modules: Mapping[str, torch.nn.Module]
    ) -> None:
        """Leaves and calls modules until those of ``called`` are under way, instead of ``under_way``."""
        shared = 0
        while shared < min(len(under_way), len(called)) and under_way[shared] == called[shared]:
            shared += 1
        for _ in under_way[shared:]:
            self._close()
        for key in called[shared:]:
            module = modules[key.partition("@")[0]]
            self._open(self._names[id(module)], module)

    def _follow_node(self, node: TracedNode, prefix: str) -> None:
        for name in node.taken:
            stored = self._by_name.get(f"{prefix}{name}")
            if stored is not None:
                self._taken(stored)
        if node.entered is not None:
            site = self._sites.get(node.entered)
            if site is not None:
                self._modules.setdefault(site, _Module(type(self._model.get_submodule(site)).__name__))
            self._entered(site)
        elif node.left:
            self.left()
        elif not self._operators:
            self._modules[next(reversed(self._stack))].computed += node.computed

    # -- what happens in it -----------------------------------------------------------------------------

    def entered(self) -> None:
        """A tap was called: until `left`, an operator runs."""
        self._entered(next(reversed(self._stack), None))

    def _entered(self, name: str | None) -> None:
        """``name``: of the module that the tap is on."""
        self.taps += 1
        self._operators += 1
        if name is not None:
            self._modules[name].operator = True

    def left(self) -> None:
        """The operator has returned."""
        self._operators = max(0, self._operators - 1)

    def dispatched(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """PyTorch has run ``func``."""
        self.seen += 1
        self.take(tensors([*args, *kwargs.values()]))
        if not self._operators and self._stack and computes(func, args, kwargs, result):
            self._modules[next(reversed(self._stack))].computed += 1

    def launched(self, given: Sequence[torch.Tensor], result: Any) -> None:
        """Something ran past the dispatcher, and nothing that it called was counted.

        It made floating-point values if it was given such a tensor, since a Triton kernel writes to its arguments.
        """
        self.seen += 1
        if not self._operators and self._stack and any(x.is_floating_point() for x in tensors([*given, *result])):
            self._modules[next(reversed(self._stack))].computed += 1

    def take(self, given: Iterable[torch.Tensor]) -> None:
        """These tensors were arguments."""
        for x in given:
            stored = self._stored.get(_address(x))
            if stored is not None:
                self._taken(stored)

    def _taken(self, stored: _Stored) -> None:
        if self._operators:
            stored.inside = True
        else:
            stored.outside.add(next(reversed(self._stack), ""))

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
        held = {address for name in operators for address in self._held.get(name, ())}
        for address, stored in self._stored.items():
            owned = stored.name in self._of_operators or address in held
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


def _stored(model: torch.nn.Module) -> dict[int, _Stored]:
    """By the address of its memory. What is tied has its first name."""
    found: dict[int, _Stored] = {}
    for name, x in _tensors_of(model):
        dtype = str(x.dtype).removeprefix("torch.")
        is_parameter = isinstance(x, torch.nn.Parameter)
        found.setdefault(_address(x), _Stored(name, dtype, tuple(x.shape), is_parameter))
    return found


def _tensors_of(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by every name that they have."""
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return ((name, x) for name, x in every if x.layout is torch.strided and x.numel())


def _address(x: torch.Tensor) -> int:
    """Of the memory that it is in; 0 for a layout that has no single one."""
    return int(x.untyped_storage().data_ptr()) if x.layout is torch.strided else 0
