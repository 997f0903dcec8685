"""What this engine was started for, which decides what its compiled and captured graphs can do."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping, Sequence

from tracereplay.engines.variables import GRAPH_MEMORY, GRAPHS
from tracereplay.event import Site
from tracereplay.hooks.thinning import Taken
from tracereplay.recorder.options import GraphOptions

__all__ = ["asked_of_graphs", "barriers", "taken_by_graphs"]


def asked_of_graphs() -> GraphOptions:
    """What this engine was started with."""
    return GraphOptions.from_dict(json.loads(os.environ.get(GRAPHS, "{}")), os.environ.get(GRAPH_MEMORY))


def taken_by_graphs(sites: Sequence[Site]) -> Taken:
    """Which taps a compiled graph needs for that."""
    asked = asked_of_graphs()
    return Taken(asked.left_out(sites), fed=asked.feeds != "nothing")


# What a compiler does not fuse in any case: its inputs and outputs are tensors in memory, with taps as without.
_NEVER_FUSED = frozenset({"attention", "embedding", "experts", "linear", "logits", "mixer", "sampler"})


def barriers(sites: Sequence[Site], untapped: Mapping[str, Container[int]]) -> list[str]:
    """What a recording of a compiled engine must say of what taps change there, in sentences.

    Args:
        sites: all operators.
        untapped: for each side, slots that have no tap in compiled code.
    """
    fused = [site for site in sites if site.role not in _NEVER_FUSED]
    tapped = [s for s in fused if any(s.slot not in untapped.get(side, ()) for side in ("in", "out"))]
    if not tapped:
        return []
    return [
        f"The engine is compiled, and taps at {len(tapped)} operators ({tapped[0].name}, for one) keep it from "
        "fusing them: logprobs may differ in the last bits from those of the engine without taps. Taps at linear "
        "layers and attention alone (--sites '*_proj' --sites '*.attn', for a Llama) change nothing."
    ]
