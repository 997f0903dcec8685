"""Golden rows inside the candidate's process: what an injected pass feeds.

For each tap all golden rows are gathered in one tensor, so that a step's rows are one indexed read. Under
tensor parallelism golden is joined first and then cut as this rank holds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tracereplay.event import Call, Layout, RowKey, RowMap, Site, Value
from tracereplay.trace import Trace, shards
from tracereplay.trace.rows import RowFinder, Tokens

__all__ = ["GoldenRows", "golden_tokens"]

_RAW = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}
Key = tuple[int, str, int]  # slot, "in" or "out", index
Array = npt.NDArray[np.generic]
Ints = npt.NDArray[np.int64]


def golden_tokens(trace: Trace, pass_name: str = "record") -> dict[tuple[int, int], list[int]]:
    """All token ids of each (request, sequence), prompt first, as far as they are known.

    From what the engine returned, since a recording may have ended before the generation; where nothing was
    returned (a command of the user's, an engine that died), from the steps, up to the first that is missing.
    """
    prompts = [list(prompt["prompt_token_ids"]) for prompt in trace.run["workload"]["prompts"]]
    results = trace.results.get(pass_name, {}).get("requests")
    if results is not None:
        return {(r["request"], r["sequence"]): prompts[r["request"]] + list(r["token_ids"]) for r in results}
    tokens: dict[tuple[int, int], list[int]] = {}
    for step in trace.steps(pass_name):
        for found in step.sampled:
            request, sequence, position = found.key
            ids = tokens.setdefault((request, sequence), list(prompts[request]))
            if position <= len(ids):
                del ids[position:]  # a row computed twice counts once, the last
                ids.append(found.token)
    return tokens


class _Table:
    """All golden rows of one tap."""

    def __init__(self) -> None:
        self.pieces: list[Array] = []
        self.numbers: list[Ints] = []
        self.dtype = ""

    def freeze(self, device: torch.device, alike: Ints) -> tuple[torch.Tensor, Ints]:
        """The rows as one tensor, and for each golden row number its place in it (-1: none).

        Args:
            device: where the tensor shall live.
            alike: see `RowFinder.alike`. A row that this tap never saw is served by one with the same prefix:
                golden may know a place at its sampler whose row another sample's prompt computed.
        """
        numbers = np.concatenate(self.numbers)
        places = np.full(len(alike), -1, dtype=np.int64)
        places[alike[numbers]] = np.arange(len(numbers))
        places = places[alike]
        places[numbers] = np.arange(len(numbers))
        data = torch.from_numpy(np.concatenate(self.pieces)).view(getattr(torch, self.dtype))
        return data.to(device), places


class GoldenRows:
    """The `Replacement` of an injected pass.

    Args:
        trace: the golden trace.
        sites: the candidate's sites on this rank.
        rank: this rank.
        world: number of tensor-parallel ranks of the candidate.
        device: where the candidate's tensors live.
    """

    def __init__(self, trace: Trace, sites: Sequence[Site], rank: int, world: int, device: torch.device) -> None:
        self._device = device
        self._shard = (rank, world)
        self._sites = {site.name: site for site in sites}
        self._finder = RowFinder(golden_tokens(trace))
        tables = self._read(trace)
        alike = self._finder.alike()
        self._tables = {key: table.freeze(device, alike) for key, table in tables.items()}
        self._last: tuple[RowMap, Ints] | None = None

    def rows(self, slot: int, side: str, index: int, rows: RowMap, like: torch.Tensor) -> torch.Tensor | None:
        found = self._tables.get((slot, side, index))
        if found is None or not len(rows) or len(rows) > len(like):
            return None
        data, places = found
        if data.shape[1:] != like.shape[1:]:
            return None
        numbers = self._numbers(rows)
        at = np.where(numbers >= 0, places[numbers], -1)
        return _laid_over(like, data, at)

    def _numbers(self, rows: RowMap) -> Ints:
        if self._last is None or self._last[0] is not rows:
            self._last = (rows, self._finder.find(rows))
        return self._last[1]

    def _read(self, trace: Trace) -> dict[Key, _Table]:
        tables: dict[Key, _Table] = {}
        ranks = trace.ranks("record")
        golden_sites = trace.sites("record")
        for steps in zip(*(trace.steps("record", rank) for rank in ranks), strict=False):
            others = [{(c.site, c.number): c for c in step.calls} for step in steps[1:]]
            for call in steps[0].calls:
                site = self._sites.get(call.site)
                peers = [found[key] for found in others if (key := (call.site, call.number)) in found]
                if site is not None:
                    self._add_call(tables, site, golden_sites[site.name], [call, *peers])
        return tables

    def _add_call(self, tables: dict[Key, _Table], site: Site, golden: Site, calls: Sequence[Call]) -> None:
        first = calls[0]
        for side, rows, values in (
            ("in", first.rows_in, [c.inputs for c in calls]),
            ("out", first.rows_out, [c.outputs for c in calls]),
        ):
            numbers = self._finder.add(rows)
            for index, pieces in enumerate(zip(*values, strict=False)):
                name = f"{side}{index}"
                array = _joined(pieces, golden.layouts.get(name))
                if not pieces[0].dtype.startswith(("float", "bfloat")) or len(rows) > len(array):
                    continue
                table = tables.setdefault((site.slot, side, index), _Table())
                table.dtype = pieces[0].dtype
                table.pieces.append(self._cut(array[: len(rows)], site.layouts.get(name)))
                table.numbers.append(numbers)

    def _cut(self, whole: Array, layout: Layout | None) -> Array:
        return whole if layout is None else shards.cut(whole, layout, *self._shard)


def _joined(pieces: Sequence[Value], layout: Layout | None) -> Array:
    arrays = [_raw(piece) for piece in pieces]
    return arrays[0] if layout is None or len(arrays) == 1 else shards.join(arrays, layout)


def _raw(value: Value) -> Array:
    """The value's bits as integers of its element size; numpy has no bfloat16."""
    data = value.load()
    itemsize = getattr(torch, value.dtype).itemsize
    return np.frombuffer(data, dtype=_RAW[itemsize]).reshape(value.shape)


def _laid_over(like: torch.Tensor, data: torch.Tensor, at: Ints) -> torch.Tensor | None:
    """``like`` with row i replaced by ``data[at[i]]`` where ``at[i] >= 0``; strides are kept."""
    known = at >= 0
    if not known.any():
        return None
    given = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    if known.all() and len(at) == len(like):
        given.copy_(data[torch.from_numpy(at).to(data.device)])
        return given
    given.copy_(like)
    targets = torch.from_numpy(np.flatnonzero(known)).to(data.device)
    given[targets] = data[torch.from_numpy(at[known]).to(data.device)].to(like.dtype)
    return given


def forced_tokens(tokens: Tokens, prompts: Sequence[int]) -> Mapping[RowKey, int]:
    """What to force: the golden token of every generated place.

    Args:
        tokens: see `golden_tokens`.
        prompts: length of each request's prompt.
    """
    return {
        RowKey(request, sequence, position): int(token)
        for (request, sequence), ids in tokens.items()
        for position, token in enumerate(ids)
        if position >= prompts[request]
    }
