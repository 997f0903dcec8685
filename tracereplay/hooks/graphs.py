"""What a compiler traced of a model, for a census: a compiled step runs none of the model's Python code.

Dynamo notes of each node of its graph the stack of modules in which it was traced. The graph is run once, on
tensors without values, under the dispatcher that a census of eager steps listens to as well, so that "computes"
means the same in both. Taps are in the graph as ``feed`` and ``observe``; what is between them is an operator.

    Dynamo ── graph ──▶ backend
                │
                ▼
       run on fake tensors ─▶ [(modules, entered | left | computed, tensors taken), ...] ─▶ Census
"""

from __future__ import annotations

import contextlib
import functools
import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tracereplay.hooks.computing import computes, tensors
from tracereplay.hooks.thinning import ALL, Taken, is_feed, is_observe, thin

__all__ = ["Traced", "TracedNode", "traced", "watch_compiler"]

_STORED = re.compile(r"\._(?:modules|parameters|buffers)\['([^']*)'\]")
_UNBACKED = 8  # stands for a size that the compiler left open


@dataclass(frozen=True, slots=True)
class TracedNode:
    """What one node of a graph does.

    Args:
        modules: those around it, outermost first, as ``id`` and, from a module's second call on, ``@`` and a
            number.
        entered: slot of the operator that begins here; None: none does.
        left: whether the operator ends here.
        computed: dispatched calls that compute floating-point values.
        taken: parameters and buffers that it takes, named from the graph's root.
    """

    modules: tuple[str, ...]
    entered: int | None = None
    left: bool = False
    computed: int = 0
    taken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Traced:
    """What a compiler traced of a module's ``forward``."""

    nodes: tuple[TracedNode, ...]


_graphs: weakref.WeakKeyDictionary[torch.nn.Module, Traced | None] = weakref.WeakKeyDictionary()


def traced(root: torch.nn.Module) -> Traced | None:
    """What was traced of ``root`` last, since `watch_compiler`; None: nothing was, or it could not be read."""
    return _graphs.get(root)


_taken = ALL


def watch_compiler(taken: Taken = ALL) -> None:
    """Reads every graph that Dynamo gives to a backend from now on, and takes out of it the taps that are not for
    what is ``taken``."""
    global _taken
    _taken = taken
    with contextlib.suppress(ImportError, AttributeError):  # not with this PyTorch; then nothing is traced
        from torch._dynamo.output_graph import OutputGraph

        original = OutputGraph.call_user_compiler
        if getattr(original, "_tracereplay", False):
            return

        @functools.wraps(original)
        def call_user_compiler(self: Any, graph: torch.fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
            _read(self, graph)
            with contextlib.suppress(Exception):  # with all of its taps it is as good
                thin(graph, _taken)
            return original(self, graph, *args, **kwargs)

        call_user_compiler._tracereplay = True  # type: ignore[attr-defined]
        OutputGraph.call_user_compiler = call_user_compiler


def _read(output: Any, graph: torch.fx.GraphModule) -> None:
    """Keeps what ``graph`` does. Never raises: the engine is about to compile."""
    root = next(iter(output.local_scope.values()), None)
    if not isinstance(root, torch.nn.Module):
        return
    try:
        _graphs[root] = Traced(tuple(_Reader(graph, root).read()))
    except Exception:
        _graphs[root] = None  # a census is then unavailable


class _Counting(TorchDispatchMode):  # type: ignore[misc,unused-ignore]
    """Counts what computes, and which parameters and buffers are taken."""

    def __init__(self, stored: dict[int, str]) -> None:
        super().__init__()
        self.stored = stored
        self.begin()

    def begin(self) -> None:
        self.computed = 0
        self.taken: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.computed += computes(func, args, kwargs, result)
        given = {_memory(x) for x in tensors([*args, *kwargs.values()])}
        self.taken |= {self.stored[memory] for memory in given if memory in self.stored}
        return result


def _memory(x: torch.Tensor) -> int:
    """Tells a storage from others; a fake one has no address."""
    return int(x.untyped_storage()._cdata)


class _Reader(torch.fx.Interpreter):  # type: ignore[misc,unused-ignore]
    """Runs a graph without values, node by node."""

    def __init__(self, graph: torch.fx.GraphModule, root: torch.nn.Module) -> None:
        super().__init__(graph, garbage_collect_values=True)
        self._root = str(id(root))
        # Not the compiler's own mode: what is asked of its symbolic sizes becomes a condition of its graph.
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self._counting = _Counting({})
        self._found: list[TracedNode] = []
        self._slot: int | None = None  # of the operator under way

    def read(self) -> Iterator[TracedNode]:
        given = [self._placeholder(node) for node in self.module.graph.nodes if node.op == "placeholder"]
        with torch.no_grad(), self._fakes, self._counting:
            self.run(*given)
        yield from self._found

    def _placeholder(self, node: torch.fx.Node) -> Any:
        value = self._fresh(node.meta["example_value"])
        if isinstance(value, torch.Tensor) and (name := _name_of(node)):
            self._counting.stored[_memory(value)] = name
        return value

    def _fresh(self, value: Any) -> Any:
        """As the compiler's ``value``, with sizes that are numbers."""
        if isinstance(value, torch.Tensor):
            with self._fakes:
                return torch.empty_strided(
                    [_number(n) for n in value.shape], [_number(n) for n in value.stride()],
                    dtype=value.dtype, device=value.device,
                )  # fmt: skip
        if isinstance(value, (list, tuple)):
            return type(value)(self._fresh(x) for x in value)
        return value if isinstance(value, bool) else _number(value)

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.op in ("placeholder", "output"):
            return super().run_node(n)
        modules = (self._root, *n.meta.get("nn_module_stack", {}))
        if is_feed(n.target):
            x, slot, _ = self.fetch_args_kwargs_from_env(n)[0]
            if self._slot is None:
                self._slot = slot
                self._found.append(TracedNode(modules, entered=slot))
            return x
        if is_observe(n.target):
            self._observed(modules, *self.fetch_args_kwargs_from_env(n)[0][1:])
            return None
        self._counting.begin()
        try:
            result = super().run_node(n)
        except Exception:  # an op of the engine's that has no implementation without values
            result = self._fresh(n.meta["example_value"])
            self._counting.computed = any(x.is_floating_point() for x in tensors([result]))
        computed, taken = self._counting.computed, tuple(sorted(self._counting.taken))
        if computed or taken:
            self._found.append(TracedNode(modules, computed=computed, taken=taken))
        return result

    def _observed(self, modules: tuple[str, ...], slot: int, index: int) -> None:
        if self._slot is None and index == 0:  # an operator without inputs
            self._found.append(TracedNode(modules, entered=slot))
            self._slot = slot
        if self._slot == slot:
            self._slot = None
            self._found.append(TracedNode(modules, left=True))


def _number(size: Any) -> Any:
    if not isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return size
    hint = size.node.hint
    return _UNBACKED if hint is None else hint


def _name_of(node: torch.fx.Node) -> str:
    """The name of a parameter or buffer from the graph's root; empty for other inputs."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    name = getattr(source, "name", "")
    return ".".join(_STORED.findall(name() if callable(name) else name))
