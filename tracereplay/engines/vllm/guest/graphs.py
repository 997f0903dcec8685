"""CUDA graphs of either runner of V1: when they are captured, and what the model is given.

Which graphs there are, and how engines keep and choose them, differs between runners and releases. What is needed
here does not: they are ``torch.cuda.CUDAGraph`` (`hooks.captures`), captured within a call of the model or around
one, whose first input tells how many rows there are.
"""

from __future__ import annotations

from typing import Any

import torch

from tracereplay.engines.vllm.guest.adapter import Adapter, wrap_method
from tracereplay.hooks.captures import watch_captures
from tracereplay.recorder.graphs import GraphRecorder
from tracereplay.recorder.options import GraphOptions
from tracereplay.recorder.session import Session
from tracereplay.replayer.own_errors import cancelled

__all__ = ["watch_graphs"]


def watch_graphs(adapter: Adapter, session: Session, options: GraphOptions) -> None:
    """Has ``session`` record what graphs compute; before the engine measures how much memory it has."""
    largest = max(adapter.config.compilation_config.cudagraph_capture_sizes)
    session.graphs = GraphRecorder(session, session.device, largest, options, cancelled, session.sites)
    session.untapped = options.left_out(session.sites)
    watch_captures(session.graphs)

    def forward(original: Any, *args: Any, **kwargs: Any) -> Any:
        with session.forward(_rows(args, kwargs)):
            return original(*args, **kwargs)

    wrap_method(adapter.model(), "forward", forward)


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many rows the model is given; 0 if nothing says so."""
    for name in ("input_ids", "inputs_embeds"):
        if isinstance(kwargs.get(name), torch.Tensor):
            return int(kwargs[name].shape[0])
    found = next((x for x in args if isinstance(x, torch.Tensor)), None)
    return 0 if found is None else int(found.shape[0])
