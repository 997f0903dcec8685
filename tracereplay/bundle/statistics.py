"""What stands for tensors that are left out: statistics of each, and the maps of errors.

    {"golden": [row...], "candidate": [row...]}
    row   site, side (in, out, written), index, dtype, calls, elements, mean, std, min, max, nonfinite

``std``, ``min`` and ``max`` are of the finite elements; numbers that JSON cannot hold are texts.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracereplay.comparator.details import Details, ErrorMap
from tracereplay.event import Value
from tracereplay.jsondata import plain
from tracereplay.trace import Trace

__all__ = ["maps_of", "statistics_of"]


@dataclass(slots=True)
class _Sums:
    """Of one tensor of a site, over all its calls."""

    dtype: str
    calls: int = 0
    elements: int = 0
    finite: int = 0
    total: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, value: Value) -> None:
        array = value.numpy().astype(np.float64).reshape(-1)
        finite = array[np.isfinite(array)]
        self.calls += 1
        self.elements += array.size
        self.finite += finite.size
        if finite.size:
            self.total += float(finite.sum())
            self.squares += float(np.square(finite).sum())
            self.least, self.most = min(self.least, float(finite.min())), max(self.most, float(finite.max()))

    def row(self) -> dict[str, Any]:
        mean = self.total / self.finite if self.finite else math.nan
        spread = math.sqrt(max(0.0, self.squares / self.finite - mean * mean)) if self.finite else math.nan
        numbers = {"mean": mean, "std": spread, "min": self.least, "max": self.most}
        return {
            "dtype": self.dtype, "calls": self.calls, "elements": self.elements,
            **{name: plain(number) for name, number in numbers.items()},
            "nonfinite": self.elements - self.finite,
        }  # fmt: skip


def statistics_of(trace: Trace, pass_name: str) -> list[dict[str, Any]]:
    """A row for each tensor of each site, in order of execution; of all ranks together."""
    found: dict[tuple[str, str, int], _Sums] = {}
    for rank in trace.ranks(pass_name):
        for step in trace.segment(pass_name, rank).steps():
            for call in step.calls:
                for side, index, value in call.values():
                    found.setdefault((call.site, side, index), _Sums(value.dtype)).add(value)
    return [
        {"site": site, "side": side, "index": index, **sums.row()} for (site, side, index), sums in found.items()
    ]


def maps_of(details: Details) -> dict[str, Any] | None:
    """The maps of errors: a byte for each site and column (see `comparator.details.errors`), deflated, in base64.

    ``runs`` are rows of consecutive positions: request, sequence and position of the first, and its place among
    all rows, of which ``width`` share a column.
    """
    scale, outputs, inputs = details.scale, details.outputs, details.inputs
    if scale is None or outputs is None or inputs is None:
        return None
    return {
        "columns": scale.columns,
        "width": scale.width,
        "rows": len(scale),
        "runs": [list(run) for run in scale.runs],
        "operators": _cells(outputs, details.sites),
        "edges": _cells(inputs, details.sites),
    }


def _cells(found: ErrorMap, sites: Sequence[str]) -> Mapping[str, str]:
    return {
        site: base64.b64encode(zlib.compress(found.cells[site].tobytes(), 9)).decode()
        for site in sites
        if site in found.cells
    }
