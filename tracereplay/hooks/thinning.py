"""Takes out of a compiler's graph the taps that nobody will ask for.

A tap is a barrier: a compiler cannot fuse across it, nor keep a value in higher precision than the tensor has.
What it computes differs in the last bits from what it computes without taps. Where it is known when an engine
starts that an operator is neither recorded nor fed, its taps go, and the compiler fuses as if they had never been
there; an input that is recorded and never fed is shown to the listener, and not copied for the operator.

    Dynamo ── graph ──▶ census reads all taps ──▶ thinned ──▶ backend
"""

from __future__ import annotations

import operator
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["ALL", "Taken", "is_feed", "is_observe", "thin"]


@dataclass(frozen=True, slots=True)
class Taken:
    """What an engine's taps are for.

    Args:
        left_out: for the sides ``in`` and ``out``, slots of operators that are not recorded there.
        fed: whether those that are recorded may be fed.
    """

    left_out: Mapping[str, Container[int]]
    fed: bool


ALL = Taken({"in": (), "out": ()}, fed=True)


def thin(graph: torch.fx.GraphModule, taken: Taken) -> None:
    """Takes the taps out of ``graph`` that ``taken`` does not need."""
    own = _own_memory(graph)
    for node in list(graph.graph.nodes):
        if is_observe(node.target) and node.args[1] in taken.left_out["out"]:
            graph.graph.erase_node(node)
        elif is_feed(node.target):
            x, slot, _ = node.args
            if slot not in taken.left_out["in"]:
                # What is shown counts as changed: of a view its base would, too, and of a graph's input the graph.
                if taken.fed or x not in own:
                    continue
                with graph.graph.inserting_before(node):
                    shown = graph.graph.call_function(torch.ops.tracereplay.arrive.default, node.args)
                shown.meta.update({key: node.meta[key] for key in _WHERE if key in node.meta})
            node.replace_all_uses_with(x)
            graph.graph.erase_node(node)
    graph.recompile()


def _own_memory(graph: torch.fx.GraphModule) -> set[torch.fx.Node]:
    """The nodes whose values are no views, and nobody's input: they were the first that had their memory."""
    owners: dict[int, torch.fx.Node] = {}
    found = set()
    for node in graph.graph.nodes:
        value = node.meta.get("example_value")
        made = node.op in ("call_function", "call_method", "call_module")
        for x in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(x, torch.Tensor):
                owner = owners.setdefault(x.untyped_storage()._cdata, node)
                whole = node.args[0] if _is_item(node) else node
                if made and owner in (node, whole) and owner.op != "placeholder":
                    found.add(node)
    return found


def _is_item(node: torch.fx.Node) -> bool:
    """Whether a node takes one of several values that another returned."""
    return node.target is operator.getitem and isinstance(
        getattr(node.args[0], "meta", {}).get("example_value"), (tuple, list)
    )


_WHERE = ("nn_module_stack", "source_fn_stack", "stack_trace")


def is_feed(target: Any) -> bool:
    """Whether a node shows an operator's input, and may replace it."""
    return target is torch.ops.tracereplay.feed or target is torch.ops.tracereplay.feed.default


def is_observe(target: Any) -> bool:
    """Whether a node shows an operator's output."""
    return target is torch.ops.tracereplay.observe or target is torch.ops.tracereplay.observe.default
