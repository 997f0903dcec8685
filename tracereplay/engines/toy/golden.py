"""Inputs of a replay of the toy: golden values, or values without own errors, and forced tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import numpy as np

from tracereplay.cancellation import Cancellation
from tracereplay.engines.toy.numerics import Array, Numerics
from tracereplay.event import RowMap, Step, Value
from tracereplay.passes import RECORD
from tracereplay.sitemap import SiteMap
from tracereplay.trace import Trace
from tracereplay.trace.rows import RowFinder
from tracereplay.trace.shards import join

__all__ = ["Cancelled", "Forced", "Golden", "Source", "golden_tokens"]

Forced: TypeAlias = Mapping[tuple[int, int], list[int]]  # (request, sequence) -> the tokens after the prompt


class Source(Protocol):
    """Replaces the values at a tap."""

    def replace(self, site: str, side: str, index: int, x: Array, rows: RowMap) -> Array:
        """The value to use instead of ``x``."""


def golden_tokens(trace: Trace, name: str = RECORD) -> dict[tuple[int, int], list[int]]:
    """The tokens that golden continued with."""
    results = trace.results.get(name, {}).get("requests")
    if results is not None:
        return {(r["request"], r["sequence"]): r["token_ids"] for r in results}
    found: dict[tuple[int, int], list[int]] = {}
    for step in trace.steps(name):
        for sampled in step.sampled:
            found.setdefault((sampled.key.request, sampled.key.sequence), []).append(sampled.token)
    return found


class Golden:
    """The golden values of each site, by place, or else by prefix.

    A row may be known at one site and missing at another: if golden shared a prompt between samples, it has the
    place at the sampler, and elsewhere only another sample's row with the same prefix.
    """

    def __init__(self, trace: Trace, name: str = RECORD, site_map: SiteMap | None = None) -> None:
        self._finder = RowFinder(_all_tokens(trace, name))
        self._rows: dict[tuple[str, str, int], dict[int, Array]] = {}
        joined = _joiner(trace, name, site_map)
        for step in trace.steps(name):
            self._add(step if site_map is None else site_map.step(step), joined)
        if site_map is not None:
            self._sum_up(site_map)
        self._alike = self._finder.alike().tolist()
        for known in self._rows.values():
            for number, x in list(known.items()):
                known.setdefault(self._alike[number], x)

    def _add(self, step: Step, joined: Callable[[Step, str, str, int], Array]) -> None:
        for call in step.calls:
            for side, values, rows in (("in", call.inputs, call.rows_in), ("out", call.outputs, call.rows_out)):
                numbers = self._finder.add(rows).tolist()
                for index, _ in enumerate(values):
                    known = self._rows.setdefault((call.site, side, index), {})
                    found = zip(numbers, joined(step, call.site, side, index), strict=False)
                    known.update((number, row) for number, row in found if number >= 0)  # none of rejected drafts

    def _sum_up(self, site_map: SiteMap) -> None:
        """As in `replayer.tables`: a sum is fed as the sum and -0.0, and two addends as their sum."""
        for site in (site for site in site_map.sites.values() if site.role == "norm"):
            x, residual, handed_on = (site.name, "in", 0), (site.name, "in", 1), (site.name, "out", 1)
            given = self._rows.get(x, {})
            if site.name in site_map.given_sums and residual in self._rows:
                self._rows[x] = self._rows.pop(handed_on)
                del self._rows[residual]
            elif residual not in self._rows:
                self._rows[residual] = {number: np.full_like(row, -0.0) for number, row in given.items()}
                self._rows.setdefault(handed_on, dict(given))

    def replace(self, site: str, side: str, index: int, x: Array, rows: RowMap) -> Array:
        """``x`` with the rows that golden has."""
        out: Array = x.copy()
        for i, given in self.known(site, side, index, x, rows).items():
            out[i] = given
        return out

    def known(self, site: str, side: str, index: int, x: Array, rows: RowMap) -> dict[int, Array]:
        """The recorded values of known ``rows``, by index in ``x``; floats only."""
        recorded = self._rows.get((site, side, index), {}) if x.dtype.kind == "f" else {}
        numbers = enumerate(self._finder.find(rows).tolist())
        found = {i: recorded.get(n, recorded.get(self._alike[n])) for i, n in numbers if n >= 0}
        return {i: given for i, given in found.items() if given is not None}


class Cancelled:
    """Subtracts own errors; the arithmetic is that of `replayer.own_errors`.

    Args:
        golden: the golden values.
        injected: the values of an injected pass of the same engine.
        selection: what to cancel.
        numerics: of the engine.
    """

    def __init__(self, golden: Golden, injected: Golden, selection: Cancellation, numerics: Numerics) -> None:
        self._golden, self._injected, self._selection = golden, injected, selection
        self._numerics = numerics

    def replace(self, site: str, side: str, index: int, x: Array, rows: RowMap) -> Array:
        """``x`` without the own error of its operator, or of the edge before it."""
        if not self._selection.takes(site, side, index):
            return x
        golden = self._golden.known(site, side, index, x, rows)
        injected = self._injected.known(site, side, index, x, rows)
        out: Array = x.copy()
        for i in golden.keys() & injected.keys():
            with np.errstate(invalid="ignore"):
                moved = x[i] - (injected[i] - golden[i])
            without = self._numerics.nearest(np.where(np.isfinite(moved), moved, x[i]))
            out[i] = np.where(_same(x[i], injected[i]), golden[i], without)
        return out


def _same(x: Array, y: Array) -> Array:
    """Elementwise equality of bits: two NaNs are equal."""
    same: Array = np.asarray((x == y) & (np.signbit(x) == np.signbit(y)) | np.isnan(x) & np.isnan(y))
    return same


def _all_tokens(trace: Trace, name: str) -> dict[tuple[int, int], list[int]]:
    prompts = trace.run.prompts
    return {key: [*(prompts[key[0]].token_ids or ()), *ids] for key, ids in golden_tokens(trace, name).items()}


def _joiner(trace: Trace, name: str, site_map: SiteMap | None) -> Callable[[Step, str, str, int], Array]:
    """Reads a tensor of a golden step, the ranks' pieces joined."""
    ranks = trace.ranks(name)
    sites = trace.sites(name) if site_map is None else site_map.sites
    named = site_map.step if site_map is not None else (lambda step: step)
    steps = {rank: {step.number: named(step) for step in trace.steps(name, rank)} for rank in ranks}

    def read(step: Step, site: str, side: str, index: int) -> Array:
        layout = sites[site].layouts.get(f"{side}{index}")
        pieces = []
        for rank in ranks if layout else ranks[:1]:
            call = next(c for c in steps[rank][step.number].calls if c.site == site)
            pieces.append(_array((call.inputs if side == "in" else call.outputs)[index]))
        return join(pieces, layout) if layout else pieces[0]

    return read


def _array(value: Value) -> Array:
    array = value.numpy()
    return array if array.dtype.kind == "i" else array.astype(np.float64)
