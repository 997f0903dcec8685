"""Inputs of a replay of the toy: golden values, or values without own errors, and forced tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import numpy as np

from tracereplay.cancellation import Cancellation
from tracereplay.columns.column import Pattern, TensorColumn
from tracereplay.columns.read import PassReader, columns_of
from tracereplay.columns.store import Columns
from tracereplay.columns.tensors import Ints
from tracereplay.engines.toy.numerics import Array, Numerics
from tracereplay.event import RowMap
from tracereplay.passes import RECORD
from tracereplay.sitemap import SiteMap
from tracereplay.trace import Trace
from tracereplay.trace.rows import RowFinder

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
    for step in trace.records(name):
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
        sites = trace.sites(name) if site_map is None else site_map.sites
        columns = Columns([trace.segment(name, rank) for rank in trace.ranks(name)])
        for _ in PassReader(self._finder.add, sites, site_map, columns).steps():
            pass
        self._taps: dict[tuple[str, str, int], TensorColumn] = {
            (key.site, key.side, key.index): column
            for key, column, _ in columns_of(columns)
            if column is not None and key.side != "written"
        }
        self._nothing: dict[tuple[str, str, int], TensorColumn] = {}  # -0.0 where these have a row
        if site_map is not None:
            self._sum_up(site_map)
        self._alike = self._finder.alike()
        self._places: dict[Pattern, Ints] = {}

    def _sum_up(self, site_map: SiteMap) -> None:
        """As in `replayer.tables`: a sum is fed as the sum and -0.0, and two addends as their sum."""
        taps = self._taps
        for site in (site for site in site_map.sites.values() if site.role == "norm"):
            x, residual, handed_on = (site.name, "in", 0), (site.name, "in", 1), (site.name, "out", 1)
            if site.name in site_map.given_sums and residual in taps:
                taps[x] = taps.pop(handed_on)
                del taps[residual]
            elif residual not in taps and x in taps:
                self._nothing[residual] = taps[x]
                taps.setdefault(handed_on, taps[x])

    def replace(self, site: str, side: str, index: int, x: Array, rows: RowMap) -> Array:
        """``x`` with the rows that golden has."""
        out: Array = x.copy()
        for i, given in self.known(site, side, index, x, rows).items():
            out[i] = given
        return out

    def known(self, site: str, side: str, index: int, x: Array, rows: RowMap) -> dict[int, Array]:
        """The recorded values of known ``rows``, by index in ``x``; floats only."""
        key = (site, side, index)
        tap = self._taps.get(key) or self._nothing.get(key)
        if tap is None or x.dtype.kind != "f":
            return {}
        if tap.pattern not in self._places:
            self._places[tap.pattern] = tap.pattern.places(self._alike)
        numbers = self._finder.find(rows)
        places = np.where(numbers >= 0, self._places[tap.pattern][numbers], -1)
        there = np.flatnonzero(places >= 0)
        if not len(there):
            return {}
        if key in self._nothing:
            given = np.full((len(there), *x.shape[1:]), -0.0)
        else:
            given = tap.rows(places[there]).astype(np.float64).reshape(len(there), *x.shape[1:])
        return dict(zip(there.tolist(), given, strict=True))


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
