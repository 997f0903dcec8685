"""The map of errors as `page.js` reads it: cells as bytes, deflated, in base64; what names rows and columns."""

from __future__ import annotations

import base64
import shlex
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tracereplay.columns.tensors import Ints
from tracereplay.comparator.details import SAME, Details, ErrorMap
from tracereplay.passes import RECORD
from tracereplay.report.clean import clean
from tracereplay.report.words import integral, number, of_allowed, percent
from tracereplay.verdict import EdgeFinding, OperatorFinding, Verdict
from tracereplay.verdict.measures import severity

__all__ = ["heat_data"]


def heat_data(verdict: Verdict, details: Details) -> dict[str, Any] | None:
    """Everything that the script needs; None where nothing was compared row by row."""
    scale, outputs, inputs = details.scale, details.outputs, details.inputs
    if scale is None or outputs is None or inputs is None or not details.sites or not scale.columns:
        return None
    operators = {finding.site: finding for finding in verdict.operators}
    edges: dict[str, EdgeFinding] = {}
    for edge in verdict.edges:
        known = edges.get(edge.site)
        if known is None or _severity(edge) > _severity(known):
            edges[edge.site] = edge
    return {
        "sites": [_site(name, operators.get(name), edges.get(name), details) for name in details.sites],
        "maps": {"operators": _map(outputs, details.sites), "edges": _map(inputs, details.sites)},
        "columns": scale.columns,
        "width": scale.width,
        "rows": len(scale),
        "runs": [list(run) for run in scale.runs],
        "steps": None if details.steps is None else [list(_runs(steps)) for steps in details.steps],
        "show": [_show(verdict.golden.trace, RECORD), _show(verdict.candidate.trace, details.pass_name)],
        "first": _first(verdict, details),
    }


def _severity(finding: EdgeFinding) -> tuple[int, float]:
    return severity(finding.error_class, finding.metrics.allowance_ratio)


def _site(
    name: str, operator: OperatorFinding | None, edge: EdgeFinding | None, details: Details
) -> dict[str, Any]:
    pair = None if operator is None else operator.pairing
    golden = name if pair is None or pair.golden_site is None else pair.golden_site.split(" | ")[0]
    return {
        "name": clean(name),
        "quoted": [shlex.quote(clean(golden)), shlex.quote(clean(name))],
        "operator": clean("" if operator is None else operator.operator),
        "operators": _over_all(operator),
        "edges": _over_all(edge),
        "inputs": [[d.index, d.golden, d.candidate, d.rows] for d in details.digests.get(name, ())],
    }


def _over_all(finding: OperatorFinding | EdgeFinding | None) -> Mapping[str, str] | None:
    if finding is None:
        return None
    metrics = finding.metrics
    compared = finding.error_class != "incomparable"
    error = (
        f"{percent(metrics.equal)} of its integers are equal"
        if integral(finding.tolerance)
        else (
            f"{of_allowed(metrics)} at most, relative L2 {number(metrics.relative_l2)}, largest difference "
            f"{number(metrics.max_abs)}, bias {metrics.bias_ulp:+.2g} ulp, {percent(metrics.equal)} bitwise equal"
        )
    )
    return {
        "class": clean(finding.error_class),
        "words": error if compared else clean(finding.reason or "not compared"),
        "rows": f"{finding.rows:,}",
    }


def _map(found: ErrorMap, sites: Sequence[str]) -> Mapping[str, Any]:
    """The cells, site after site; and where rows share columns, which of them is meant."""
    columns, width = found.scale.columns, found.scale.width
    cells = np.zeros((len(sites), columns), np.uint8)
    places = np.zeros((len(sites), columns), np.uint8 if width <= 256 else np.uint32)
    starts = np.arange(columns) * width
    for n, site in enumerate(sites):
        if site in found.cells:
            cells[n] = found.cells[site]
            if width > 1:
                places[n] = np.where(cells[n] > SAME, found.places[site] - starts, 0)
    return {
        "cells": _deflated(cells.tobytes()),
        "places": _deflated(places.astype("<" + places.dtype.str[1:]).tobytes()) if width > 1 else None,
        "bytes": places.itemsize,
        "worst": int(cells.max(initial=0)),
    }


def _deflated(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _runs(steps: Ints) -> Iterator[tuple[int, int, int]]:
    """Rows of one step, or of consecutive steps: the first one's place, its step, and how the step goes on."""
    place, last = 0, len(steps) - 1
    change = np.diff(steps)
    ends = [np.flatnonzero(change != by) for by in (0, 1)]
    while place <= last:
        by = 1 if place < last and change[place] == 1 else 0
        yield place, int(steps[place]), by
        at = int(np.searchsorted(ends[by], place))
        place = (int(ends[by][at]) if at < len(ends[by]) else last) + 1


def _show(trace: str, name: str) -> Mapping[str, str]:
    """The beginning of the command that shows a call, and what follows the site."""
    which = "" if name == RECORD else f" --pass {shlex.quote(clean(name))}"
    return {"begin": f"tracereplay show {shlex.quote(clean(trace))}", "pass": which}


def _first(verdict: Verdict, details: Details) -> list[Any] | None:
    """The cell of the first divergence: map, site, request, sequence, position."""
    first = verdict.first_divergence
    if first is None or first.site not in details.sites:
        return None
    which = "edges" if first.kind == "edge" else "operators"
    return [which, details.sites.index(first.site), first.request, first.sequence, first.position]
