"""The calls of a pass, counted over all its steps in execution order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tracereplay.columns.kinds import KindCall
from tracereplay.columns.store import Columns
from tracereplay.columns.tensors import Ints

__all__ = ["CallInfo", "Calls"]


class CallInfo(NamedTuple):
    """One call of a pass.

    Args:
        order: counts calls over the whole pass in execution order.
        fed: see `event.Call`.
    """

    order: int
    step: int
    site: str
    number: int
    fed: tuple[int, ...] | None = None


class Calls:
    """The calls of a pass in execution order; made when they are asked for."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return int(self._columns.before[-1])

    def __getitem__(self, order: int) -> CallInfo:
        columns = self._columns
        step = int(np.searchsorted(columns.before, order, side="right")) - 1
        call = columns.kinds[int(columns.kind_of[step])].calls[order - int(columns.before[step])]
        return CallInfo(order, int(columns.numbers[step]), call.site, call.number, call.fed)

    def let_go(self) -> None:
        """Forgets the tensors that were read."""
        self._columns.stacks.let_go()

    def steps(self, orders: Ints) -> Ints:
        """The numbers of the steps that these calls are in."""
        found: Ints = self._columns.numbers[np.searchsorted(self._columns.before, orders, side="right") - 1]
        return found

    @cached_property
    def first(self) -> Mapping[str, int]:
        """By site its first call."""
        columns = self._columns
        found: dict[str, int] = {}
        for kind in columns.kinds:
            start = int(columns.before[columns.steps_of(kind.number)[0]])
            for place, call in enumerate(kind.calls):
                found[call.site] = min(found.get(call.site, start + place), start + place)
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def counts(self) -> Mapping[str, int]:
        """By site how many calls it has."""
        found: dict[str, int] = {}
        for kind in self._columns.kinds:
            steps = len(self._columns.steps_of(kind.number))
            for call in kind.calls:
                found[call.site] = found.get(call.site, 0) + steps
        return found

    def where(self, wanted: Callable[[KindCall], bool]) -> Mapping[str, Ints]:
        """By site the calls for which ``wanted`` holds, in order."""
        columns = self._columns
        found: dict[str, list[Ints]] = {}
        for kind in columns.kinds:
            starts = columns.before[columns.steps_of(kind.number)]
            for place, call in enumerate(kind.calls):
                if wanted(call):
                    found.setdefault(call.site, []).append(starts + place)
        return {site: np.sort(np.concatenate(parts)) for site, parts in found.items()}

    def blocks(self, orders: Ints) -> Ints:
        """The block of each of these calls; see `Columns.blocks`."""
        columns = self._columns
        steps = np.searchsorted(columns.before, orders, side="right") - 1
        found = columns.blocks[0][steps]
        if self._large:
            within = np.concatenate([kind.block for kind in columns.kinds])
            starts = np.cumsum([0, *(len(kind.calls) for kind in columns.kinds)])
            found = found + within[starts[columns.kind_of[steps]] + orders - columns.before[steps]]
        return found

    @cached_property
    def _large(self) -> bool:
        return any(kind.block.any() for kind in self._columns.kinds)
