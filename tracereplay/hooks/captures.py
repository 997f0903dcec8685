"""Tells when PyTorch captures a CUDA graph, and when one is replayed.

Every way in which engines use graphs ends at ``torch.cuda.CUDAGraph``: a graph of a whole model, a piece between
two attention layers, a segment between two breaks. What is captured between ``capture_begin`` and ``capture_end``
runs again, without its Python, in each ``replay``.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch

__all__ = ["Captures", "unwatch_captures", "watch_captures"]

_MARK = "_tracereplay_watched"


class Captures(Protocol):
    """What is told. Graphs are kept apart by identity; each may be given attributes."""

    def begins(self, graph: Any) -> None:
        """What runs from now on is captured into ``graph``."""

    def ends(self, graph: Any) -> None:
        """Its capture is complete."""

    def replays(self, graph: Any) -> None:
        """It is about to be replayed on the current stream."""

    def replayed(self, graph: Any) -> None:
        """Its replay has been enqueued."""


_told: Captures | None = None


def watch_captures(captures: Captures | None) -> None:
    """Makes ``captures`` the one that is told, in this process, from now on."""
    global _told
    _told = captures
    kind = torch.cuda.CUDAGraph
    if getattr(kind, _MARK, None) is not kind:
        setattr(kind, _MARK, kind)
        _wrap(kind)


def unwatch_captures(captures: Captures | None) -> None:
    """Lets go of ``captures``, unless another is told by now."""
    global _told
    if _told is captures:
        _told = None


def _wrap(kind: Any) -> None:
    begin, end, replay = kind.capture_begin, kind.capture_end, kind.replay

    @functools.wraps(begin)
    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = begin(self, *args, **kwargs)
        told = _told  # another thread may let go of it
        if told is not None:
            told.begins(self)
        return result

    @functools.wraps(end)
    def capture_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        told = _told
        if told is not None:
            told.ends(self)
        return end(self, *args, **kwargs)

    @functools.wraps(replay)
    def replay_graph(self: Any, *args: Any, **kwargs: Any) -> Any:
        told = _told
        if told is None:
            return replay(self, *args, **kwargs)
        told.replays(self)
        result = replay(self, *args, **kwargs)
        told.replayed(self)
        return result

    kind.capture_begin, kind.capture_end, kind.replay = capture_begin, capture_end, replay_graph
