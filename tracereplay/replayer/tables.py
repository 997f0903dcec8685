"""Looks up rows of a recorded pass in the candidate's process.

What is held of a pass is what its steps have in common and a few bytes a step; of its tensors a few windows are in
host memory, and the rows of one step on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from tracereplay.columns.column import Pattern, TensorColumn
from tracereplay.columns.read import PassReader, columns_of
from tracereplay.columns.store import Columns
from tracereplay.device import Device
from tracereplay.event import RowMap, Site
from tracereplay.replayer.ahead import BITS, Ahead, Ask
from tracereplay.replayer.recorded import Added, Found, Ints, Nothing, Recorded, Tap, Wanted, Windows, wanted_rows
from tracereplay.sitemap import SiteMap
from tracereplay.trace import Trace
from tracereplay.trace.rows import RowFinder, Tokens

__all__ = ["Found", "Ints", "Known", "RowTables", "laid_out"]

Key = tuple[int, str, int]  # slot, "in" or "out", index
Known = npt.NDArray[np.bool_]
BLOCK = 8 << 20  # bytes of tensors that are read at a time
KEPT = 16  # windows: as many steps of golden's may make up one of the candidate's without reading any again
HELD = 8 * BLOCK  # bytes of chunks, until all taps have read their part


class RowTables:
    """The float tensors of a pass, by tap and row.

    Args:
        trace: where the pass is.
        name: of the pass.
        tokens: golden's sequences, to find a row in another request with the same prefix.
        sites: the candidate's sites on this rank.
        rank: this rank.
        world: number of tensor-parallel ranks of the candidate.
        device: where the candidate computes.
        own: whether this engine recorded the pass, so that this rank's segment has its shards. Otherwise the
            shards of all ranks are joined and cut again.
        site_map: translates golden to this engine's naming; None if it has it already.
    """

    def __init__(
        self, trace: Trace, name: str, tokens: Tokens, sites: Sequence[Site], rank: int, world: int,
        device: Device, *, own: bool = False, site_map: SiteMap | None = None,
    ) -> None:  # fmt: skip
        self._device, self._map = device, site_map
        self._shard = (rank, world)
        self._own = own
        self._sites = {site.name: site for site in sites}
        self._finder = RowFinder(tokens)
        self._windows = Windows(KEPT)
        self._taps: dict[Key, Tap] = dict(self._read(trace, name))
        self._alike = self._finder.alike()
        self._where: dict[Pattern, Ints] = {}
        self._sums: dict[int, Tap] = {}  # of norms, what x and residual add up to
        self._only_sums: set[int] = set()  # those that take nothing else
        if not own:
            self._sum_up(site_map.given_sums if site_map else frozenset())
        self._last: tuple[RowMap, Ints] | None = None
        self._wanted: dict[Pattern, Wanted] = {}  # of the rows that were last asked for
        self._places: dict[bytes, torch.Tensor] = {}
        self._ahead = Ahead(device)

    def rows_for(self, rows_of: Callable[[int], tuple[RowMap, RowMap]]) -> None:
        """See `recorder.replacement.Replacement`. The device holds one step's rows only."""

        def wanted(ask: Ask) -> Found | None:
            rows = rows_of(ask.slot)[ask.side == "out"]
            found = self._located(ask, rows) if len(rows) else None
            return None if found is None else (found[0], found[1][found[1] >= 0])

        self._ahead.send(wanted)

    def find(
        self, slot: int, side: str, index: int, rows: RowMap, like: torch.Tensor, inputs: int | None = None
    ) -> Found | None:
        """The rows of a tap, and where in them each of ``rows`` is; None if it has none of this shape.

        Args:
            inputs: how many tensors the call was given, where that is known: a norm with one is given the sum.
        """
        if not len(rows) or len(rows) > len(like):
            return None
        found = self._located(Ask(slot, side, index, inputs), rows)
        return None if found is None or found[0].shape[1:] != like.shape[1:] else found

    def _located(self, ask: Ask, rows: RowMap) -> Found | None:
        tap = self._taps.get((ask.slot, ask.side, ask.number))
        if ask.side == "in" and ask.inputs == 1 and ask.slot in self._sums:
            tap = self._sums[ask.slot]
        return None if tap is None else tap.find(self._wanted_of(rows, tap.pattern))

    def picked(self, ask: Ask, data: torch.Tensor, places: Ints, dtype: torch.dtype) -> torch.Tensor:
        """Rows of ``data`` (see `find`) as a new tensor of ``dtype`` on the device. Does not synchronize."""
        return self._ahead.rows(ask, data, places).to(dtype)

    def lay_in(self, data: torch.Tensor, places: Ints, known: Known, host: torch.Tensor) -> None:
        """Writes the known rows of ``data`` (see `find`) to their places in ``host``, which has its own dtype."""
        bits = BITS[data.element_size()]
        rows = data.view(bits)[torch.from_numpy(places[known])].view(data.dtype).to(host.dtype)
        host[torch.from_numpy(np.flatnonzero(known))] = rows

    def is_sum(self, slot: int, inputs: int | None) -> bool:
        """Whether a call with so many inputs is fed the sum of golden's two."""
        return slot in self._only_sums or (inputs == 1 and slot in self._sums)

    def targets(self, known: Known) -> torch.Tensor:
        """Indices of the known rows, on the device. Cached, since most taps of a step have the same."""
        key = known.tobytes()
        found = self._places.get(key)
        if found is None:
            if len(self._places) > 64:
                self._places.clear()
            found = self._places[key] = self._device.upload(torch.from_numpy(np.flatnonzero(known)))
        return found

    def _wanted_of(self, rows: RowMap, pattern: Pattern) -> Wanted:
        """Where the taps of a pattern have these rows; most taps of a step ask for the same."""
        if self._last is None or self._last[0] is not rows:
            self._last = (rows, self._finder.find(rows))
            self._wanted.clear()
        found = self._wanted.get(pattern)
        if found is None:
            if pattern not in self._where:
                self._where[pattern] = pattern.places(self._alike)
            numbers = self._last[1]
            places = np.where(numbers >= 0, self._where[pattern][numbers], -1)
            found = self._wanted[pattern] = wanted_rows(self._columns, pattern, places)
        return found

    def _sum_up(self, given_sums: Collection[str]) -> None:
        """Makes the taps of norms that take x and residual where golden has their sum, or vice versa.

        A sum cannot be split again: it is fed as the sum and -0.0, which leaves every number unchanged, even -0.0.
        """
        taps = self._taps
        for site in self._sites.values():
            x, residual, handed_on = (site.slot, "in", 0), (site.slot, "in", 1), (site.slot, "out", 1)
            found = taps.get(x)
            if site.role != "norm" or found is None:
                continue
            if site.name in given_sums and residual in taps:
                total = taps.pop(handed_on, None) or self._added(found, taps.pop(residual))
                del taps[x]
                if total is not None:
                    taps[x] = total
                    self._only_sums.add(site.slot)
            elif residual in taps:
                total = taps.get(handed_on) or self._added(found, taps[residual])
                if total is not None:
                    self._sums[site.slot] = total
            else:
                taps[residual] = Nothing(found)
                taps.setdefault(handed_on, found)

    def _added(self, x: Tap, residual: Tap) -> Tap | None:
        """What two taps add up to; None if their rows differ."""
        if not isinstance(x, Recorded) or not isinstance(residual, Recorded):
            return None
        if x.pattern is not residual.pattern or x.tails != residual.tails:
            return None
        return Added(x, residual, self._windows)

    def _read(self, trace: Trace, name: str) -> Mapping[Key, Recorded]:
        """The taps of this engine's sites that golden has floats for."""
        ranks = (self._shard[0],) if self._own else trace.ranks(name)
        sites = trace.sites(name, ranks[0]) if self._map is None else self._map.sites
        if self._own:
            sites = {key: replace(site, layouts={}) for key, site in sites.items()}
        self._columns = Columns([trace.segment(name, rank) for rank in ranks], BLOCK, HELD, bits=True)
        for _ in PassReader(self._finder.add, sites, self._map, self._columns).steps():
            pass
        found: dict[Key, Recorded] = {}
        for key, column, _ in columns_of(self._columns):
            site = self._sites.get(key.site)
            if site is None or key.side == "written" or column is None or not _feedable(column):
                continue
            layout = None if self._own else site.layouts.get(f"{key.side}{key.index}")
            found[site.slot, key.side, key.index] = Recorded(column, layout, self._shard, self._windows)
        return found


def _feedable(column: TensorColumn) -> bool:
    """Whether it holds floats, of one dtype, with its rows along the first dimension."""
    dtypes = {tensor.dtype for tensor in column.kinds}
    return (
        len(dtypes) == 1
        and dtypes.pop().startswith(("float", "bfloat"))
        and all(not tensor.axis for tensor in column.kinds)
    )


def laid_out(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``x`` with the strides of ``like``, in memory of its own."""
    if x is not like and x.stride() == like.stride():
        return x
    given = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    return given.copy_(x)
