"""What the steps of a segment are, in short: what a reader wants to see first of a trace of any length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tracereplay.event import RowMap

__all__ = ["FIRST", "Outline", "StepLine", "joined", "line_of"]

FIRST = 6  # steps that are told one by one


class StepLine(NamedTuple):
    """A step in one line.

    Args:
        number: of the step.
        rows: of its row map.
        requests: that its rows belong to, in order.
        calls: of operators.
        sampled: tokens.
    """

    number: int
    rows: int
    requests: tuple[int, ...]
    calls: int
    sampled: int


def line_of(number: int, rows: RowMap, calls: int, sampled: int) -> StepLine:
    """The step with this row map, and so many calls and sampled tokens."""
    return StepLine(number, len(rows), tuple(np.unique(rows[:, 0]).tolist()), calls, sampled)


@dataclass(slots=True)
class Outline:
    """Sums over steps, which are added one after the other.

    Args:
        steps, rows, sampled: how many there are in all.
        calls: how often each site was called; sites by their names, or by their slots while a segment is written.
        first: the first steps, `FIRST` at most.
    """

    steps: int = 0
    rows: int = 0
    sampled: int = 0
    calls: Counter[Hashable] = field(default_factory=Counter)
    first: list[StepLine] = field(default_factory=list)
    _form: Hashable = None
    _sites: Sequence[Hashable] = ()
    _alike: int = 0

    def add(self, number: int, rows: RowMap, sampled: int, form: Hashable, sites: Sequence[Hashable]) -> None:
        """A step.

        Args:
            number: of the step.
            rows: its row map.
            sampled: how many tokens it sampled.
            form: what steps with the same calls have in common.
            sites: that were called, one for each call, in order.
        """
        if len(self.first) < FIRST:
            self.first.append(line_of(number, rows, len(sites), sampled))
        self.steps += 1
        self.rows += len(rows)
        self.sampled += sampled
        if form != self._form:
            self._count()
            self._form, self._sites = form, sites
        self._alike += 1

    def done(self) -> Outline:
        """Itself, once all steps were added."""
        self._count()
        return self

    def _count(self) -> None:
        """Counts the calls of the steps of one form, which mostly follow each other, in one go."""
        for site in self._sites:
            self.calls[site] += self._alike
        self._form, self._sites, self._alike = None, (), 0


def joined(outlines: Iterable[Outline], begins: Iterable[tuple[int, int]]) -> Outline:
    """The outlines of segments that follow each other, renumbered by where each one's requests and steps begin."""
    found = Outline()
    for one, (request, step) in zip(outlines, begins, strict=True):
        found.steps += one.steps
        found.rows += one.rows
        found.sampled += one.sampled
        found.calls.update(one.calls)
        lines = [
            line._replace(number=line.number + step, requests=tuple(r + request for r in line.requests))
            for line in one.first
        ]
        found.first = [*found.first, *lines][:FIRST]
    return found
