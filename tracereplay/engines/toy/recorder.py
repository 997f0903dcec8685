"""The toy's taps: they record tensors, and replace them in an injected or cancelled pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tracereplay.engines.toy.golden import Source
from tracereplay.engines.toy.numerics import Array, Numerics
from tracereplay.event import Request, RowMap, Sampled, Site, make_rows
from tracereplay.recorder.options import Options
from tracereplay.trace import PendingCall, SegmentWriter, TensorBytes, segment_path
from tracereplay.trace.shards import cut
from tracereplay.trace.withheld import Withheld

__all__ = ["Recorder"]


class Recorder:
    """The taps of one pass.

    Args:
        path: the trace.
        name: the pass.
        ranks: 1 or 2; each writes a segment. 0: nothing is recorded.
        source: replaces tensors in an injected or cancelled pass.
        known: the engine's operators.
        options: of which operators, and which side, something is kept.
        meta: what segments say besides of their engine.
        begun: the requests, where no workload says what they are.
    """

    def __init__(
        self, path: Path, name: str, numerics: Numerics, ranks: int, source: Source | None, known: Iterable[Site],
        options: Options = Options(), meta: Mapping[str, Any] = MappingProxyType({}),
        begun: Sequence[Request] = (),
    ) -> None:  # fmt: skip
        self._numerics, self._source = numerics, source
        self._sites = {site.name: site for site in known}
        self._left_out = options.left_out(list(self._sites.values()))
        self._writers = [
            SegmentWriter(
                segment_path(path, name, rank),
                {"pass": name, "rank": rank, "world": ranks, **meta},
                recipients=options.recipients,
                withheld=None if options.withhold is None else Withheld(options.withhold),
            )
            for rank in range(ranks)
        ]
        for writer in self._writers:
            writer.sites(self._sites.values())
        self._rows = make_rows([])
        self._calls: list[dict[str, PendingCall]] = []
        self._weight_updates = 0
        self._begun = begun
        self.steps = 0

    def weights_updated(self) -> None:
        """Counts an update of the weights."""
        self._weight_updates += 1

    def begin(self, rows: RowMap) -> None:
        self._rows = rows
        self._calls = [{} for _ in self._writers]

    def feed(self, site: str, index: int, x: Array, rows: RowMap | None = None) -> Array:
        """Records an input and returns what the operator is to use."""
        rows = self._rows if rows is None else rows
        self._keep(site, "in", index, x, rows)
        return x if self._source is None else self._source.replace(site, "in", index, x, rows)

    def observe(
        self, site: str, index: int, x: Array, rows: RowMap | None = None, *, replace: bool = True
    ) -> Array:
        """Records a result and returns what is passed on."""
        rows = self._rows if rows is None else rows
        self._keep(site, "out", index, x, rows)
        return self._source.replace(site, "out", index, x, rows) if replace and self._source is not None else x

    def _keep(self, site: str, side: str, index: int, x: Array, rows: RowMap) -> None:
        known = self._sites[site]
        if known.slot in self._left_out[side]:
            return
        layout = known.layouts.get(f"{side}{index}")
        for rank, calls in enumerate(self._calls):
            piece = cut(x, layout, rank, len(self._calls)) if layout else x
            call = calls.setdefault(site, PendingCall(known.slot, 0, rows, rows))
            tensors, attribute = (call.inputs, "rows_in") if side == "in" else (call.outputs, "rows_out")
            setattr(call, attribute, rows)
            tensors[index] = self._bytes(site, piece)

    def _bytes(self, site: str, x: Array) -> TensorBytes:
        stored = x if x.dtype.kind == "i" else x.astype(np.float32 if x.ndim == 1 else self._numerics.stored)
        strides = tuple(s // stored.itemsize for s in np.ascontiguousarray(stored).strides)
        return TensorBytes(stored.dtype.name, x.shape, strides, stored.tobytes())

    def commit(self, number: int, sampled: list[Sampled]) -> None:
        self.steps += 1
        for writer, calls in zip(self._writers, self._calls, strict=True):
            writer.step(number, self._rows, list(calls.values()), sampled, [], self._begun, self._weight_updates)
        self._begun = ()

    def close(self) -> None:
        for writer in self._writers:
            writer.close({})
