"""Looks up rows of a recorded pass in the candidate's process.

The rows of each tap are one tensor in host memory, so that a step's rows are one indexed read. The device holds
only the rows of one step: a whole golden trace does not fit beside a key/value cache.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tracereplay.device import Device
from tracereplay.event import Call, Layout, RowMap, Site, Value
from tracereplay.sitemap import SiteMap
from tracereplay.trace import Trace, shards
from tracereplay.trace.rows import RowFinder, Tokens

__all__ = ["BITS", "Found", "Ints", "Known", "RowTables", "laid_out"]

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_RAW = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}
Key = tuple[int, str, int]  # slot, "in" or "out", index
Array = npt.NDArray[np.generic]
Ints = npt.NDArray[np.int64]
Known = npt.NDArray[np.bool_]
Found = tuple[torch.Tensor, Ints]  # all rows of a tap, and for each requested row its index in them (-1: none)


class _Table:
    """All rows of one tap."""

    def __init__(self) -> None:
        self.pieces: list[Array] = []
        self.numbers: list[Ints] = []
        self.dtype = ""

    def freeze(self, alike: Ints) -> Found:
        """The rows as one tensor, and for each row number its index in it (-1: none).

        Args:
            alike: see `RowFinder.alike`. A row that this tap never saw is replaced by one with the same prefix:
                golden's sampler may have a row that was computed as part of another sample's prompt.
        """
        numbers = np.concatenate(self.numbers)
        places = np.full(len(alike), -1, dtype=np.int64)
        places[alike[numbers]] = np.arange(len(numbers))
        places = places[alike]
        places[numbers] = np.arange(len(numbers))
        data = torch.from_numpy(np.concatenate(self.pieces)).view(getattr(torch, self.dtype))
        return data, places


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
        tables = self._read(trace, name)
        alike = self._finder.alike()
        self._tables = {key: table.freeze(alike) for key, table in tables.items()}
        self._sums: dict[int, Found] = {}  # of norms, what x and residual add up to
        self._only_sums: set[int] = set()  # those that take nothing else
        if not own:
            self._sum_up(site_map.given_sums if site_map else frozenset())
        self._last: tuple[RowMap, Ints] | None = None
        self._places: dict[bytes, torch.Tensor] = {}

    def find(
        self, slot: int, side: str, index: int, rows: RowMap, like: torch.Tensor, inputs: int | None = None
    ) -> Found | None:
        """The rows of a tap, and where in them each of ``rows`` is; None if it has none of this shape.

        Args:
            inputs: how many tensors the call was given, where that is known: a norm with one is given the sum.
        """
        found = self._tables.get((slot, side, index))
        if side == "in" and inputs == 1 and slot in self._sums:
            found = self._sums[slot]
        if found is None or not len(rows) or len(rows) > len(like):
            return None
        data, places = found
        if data.shape[1:] != like.shape[1:]:
            return None
        numbers = self._numbers(rows)
        return data, np.where(numbers >= 0, places[numbers], -1)

    def picked(self, data: torch.Tensor, places: Ints, dtype: torch.dtype) -> torch.Tensor:
        """Rows of ``data`` (see `find`) as a new tensor of ``dtype`` on the device. Does not synchronize."""
        return self.sent(self.gathered(data, places), dtype)

    def gathered(self, data: torch.Tensor, places: Ints) -> torch.Tensor:
        """Rows of ``data`` (see `find`) as a new tensor in host memory."""
        bits = BITS[data.element_size()]
        rows = self._device.pinned((len(places), *data.shape[1:]), data.dtype)
        torch.index_select(data.view(bits), 0, torch.from_numpy(places), out=rows.view(bits))
        return rows

    def sent(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What `gathered` gave, as ``dtype`` on the device."""
        return self._device.upload(rows).to(dtype)

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

    def _numbers(self, rows: RowMap) -> Ints:
        if self._last is None or self._last[0] is not rows:
            self._last = (rows, self._finder.find(rows))
        return self._last[1]

    def _sum_up(self, given_sums: Collection[str]) -> None:
        """Makes the tables of norms that take x and residual where golden has their sum, or vice versa.

        A sum cannot be split again: it is fed as the sum and -0.0, which leaves every number unchanged, even -0.0.
        """
        for site in self._sites.values():
            x, residual, handed_on = (site.slot, "in", 0), (site.slot, "in", 1), (site.slot, "out", 1)
            found = self._tables.get(x)
            if site.role != "norm" or found is None:
                continue
            if site.name in given_sums and residual in self._tables:
                total = self._tables.pop(handed_on, None) or _added(found, self._tables.pop(residual))
                del self._tables[x]
                if total is not None:
                    self._tables[x] = total
                    self._only_sums.add(site.slot)
            elif residual in self._tables:
                total = self._tables.get(handed_on) or _added(found, self._tables[residual])
                if total is not None:
                    self._sums[site.slot] = total
            else:
                nothing = torch.full_like(found[0][:1], -0.0)
                self._tables[residual] = nothing, np.where(found[1] >= 0, 0, -1)
                self._tables.setdefault(handed_on, found)

    def _read(self, trace: Trace, name: str) -> dict[Key, _Table]:
        tables: dict[Key, _Table] = {}
        ranks = (self._shard[0],) if self._own else trace.ranks(name)
        theirs = trace.sites(name, ranks[0]) if self._map is None else self._map.sites
        for calls in _calls(trace, name, ranks, self._map):
            site = self._sites.get(calls[0].site)
            if site is not None:
                self._add_call(tables, site, theirs[site.name], calls)
        return tables

    def _add_call(self, tables: dict[Key, _Table], site: Site, theirs: Site, calls: Sequence[Call]) -> None:
        first = calls[0]
        for side, rows, values in (
            ("in", first.rows_in, [c.inputs for c in calls]),
            ("out", first.rows_out, [c.outputs for c in calls]),
        ):
            numbers = self._finder.add(rows)
            kept = np.flatnonzero(numbers >= 0)  # without drafts that were rejected
            for index, pieces in enumerate(zip(*values, strict=False)):
                array = self._array(pieces, f"{side}{index}", site.layouts, theirs.layouts)
                if not pieces[0].dtype.startswith(("float", "bfloat")) or len(rows) > len(array):
                    continue
                table = tables.setdefault((site.slot, side, index), _Table())
                table.dtype = pieces[0].dtype
                table.pieces.append(array[: len(rows)] if len(kept) == len(rows) else array[kept])
                table.numbers.append(numbers[kept])

    def _array(
        self, pieces: Sequence[Value], name: str, mine: Mapping[str, Layout], theirs: Mapping[str, Layout]
    ) -> Array:
        if self._own:
            return _raw(pieces[0])
        whole = _joined(pieces, theirs.get(name))
        layout = mine.get(name)
        return whole if layout is None else shards.cut(whole, layout, *self._shard)


def laid_out(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``x`` with the strides of ``like``, in memory of its own."""
    if x is not like and x.stride() == like.stride():
        return x
    given = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    return given.copy_(x)


def _added(x: Found, residual: Found) -> Found | None:
    """The sum of two taps, rounded once; None if their rows differ."""
    (one, places), (two, others) = x, residual
    if one.shape != two.shape or not np.array_equal(places, others):
        return None
    return (one.double() + two.double()).to(one.dtype), places


def _calls(trace: Trace, name: str, ranks: Sequence[int], site_map: SiteMap | None) -> Iterator[list[Call]]:
    """Each call of the first rank, with the same call of the other ranks."""
    every = [trace.steps(name, rank) for rank in ranks]
    for found in zip(*every, strict=False):
        steps = found if site_map is None else tuple(map(site_map.step, found))
        others = [{(c.site, c.number): c for c in step.calls} for step in steps[1:]]
        for call in steps[0].calls:
            yield [call, *(found[key] for found in others if (key := (call.site, call.number)) in found)]


def _joined(pieces: Sequence[Value], layout: Layout | None) -> Array:
    arrays = [_raw(piece) for piece in pieces]
    return arrays[0] if layout is None or len(arrays) == 1 else shards.join(arrays, layout)


def _raw(value: Value) -> Array:
    """The value's bits as integers of its element size; numpy has no bfloat16."""
    data = value.load()
    itemsize = getattr(torch, value.dtype).itemsize
    return np.frombuffer(data, dtype=_RAW[itemsize]).reshape(value.shape)
