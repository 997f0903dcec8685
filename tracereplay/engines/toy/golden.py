"""The golden values that an injected pass of the toy is fed, and the tokens that it is forced to take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from tracereplay.engines.toy.numerics import Array
from tracereplay.event import RowMap, Step, Value
from tracereplay.trace import Trace
from tracereplay.trace.rows import RowFinder
from tracereplay.trace.shards import join

__all__ = ["Forced", "Golden", "golden_tokens"]

Forced: TypeAlias = Mapping[tuple[int, int], list[int]]  # (request, sequence) -> the tokens after the prompt


def golden_tokens(trace: Trace) -> dict[tuple[int, int], list[int]]:
    """The tokens that golden went on with."""
    results = trace.results.get("record", {}).get("requests")
    if results is not None:
        return {(r["request"], r["sequence"]): r["token_ids"] for r in results}
    found: dict[tuple[int, int], list[int]] = {}
    for step in trace.steps("record"):
        for sampled in step.sampled:
            found.setdefault((sampled.key.request, sampled.key.sequence), []).append(sampled.token)
    return found


class Golden:
    """The golden values of each site, to be fed: by place, and by beginning where golden never had the place.

    Why a row may be missing at one site and known at another: golden may have sampled from a place whose row
    another sample's prompt computed, and then knows the place at the sampler and only its beginning elsewhere.
    """

    def __init__(self, trace: Trace) -> None:
        self._finder = RowFinder(_all_tokens(trace))
        self._rows: dict[tuple[str, str, int], dict[int, Array]] = {}
        joined = _joiner(trace)
        for step in trace.steps("record"):
            self._add(step, joined)
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
                    known.update(zip(numbers, joined(step, call.site, side, index), strict=False))

    def replace(self, site: str, side: str, index: int, x: Array, rows: RowMap) -> Array:
        """``x`` with the rows that golden has."""
        known = self._rows.get((site, side, index), {})
        if x.dtype.kind != "f":
            return x
        x = x.copy()
        for i, number in enumerate(self._finder.find(rows).tolist()):
            given = known.get(number, known.get(self._alike[number])) if number >= 0 else None
            if given is not None:
                x[i] = given
        return x


def _all_tokens(trace: Trace) -> dict[tuple[int, int], list[int]]:
    prompts = trace.run["workload"]["prompts"]
    return {key: prompts[key[0]]["prompt_token_ids"] + ids for key, ids in golden_tokens(trace).items()}


def _joiner(trace: Trace) -> Callable[[Step, str, str, int], Array]:
    """Reads a tensor of a golden step, the ranks' pieces joined."""
    ranks = trace.ranks("record")
    steps = {rank: {step.number: step for step in trace.steps("record", rank)} for rank in ranks}

    def read(step: Step, site: str, side: str, index: int) -> Array:
        layout = trace.sites("record")[site].layouts.get(f"{side}{index}")
        pieces = []
        for rank in ranks if layout else ranks[:1]:
            call = next(c for c in steps[rank][step.number].calls if c.site == site)
            pieces.append(_array((call.inputs if side == "in" else call.outputs)[index]))
        return join(pieces, layout) if layout else pieces[0]

    return read


def _array(value: Value) -> Array:
    array = value.numpy()
    return array if array.dtype.kind == "i" else array.astype(np.float64)
