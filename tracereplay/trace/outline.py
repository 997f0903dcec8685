"""What the steps of a segment are, in short: what a reader wants to see first of a trace of any length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tracereplay.event import Request, RowMap
from tracereplay.trace.plain import as_place, as_text

__all__ = ["FIRST", "MOST", "IdOf", "Outline", "StepLine", "joined", "line_of", "read_outline", "write_outline"]

FIRST = 6  # steps that are told one by one
MOST_IDS = 20_000  # requests whose ids are told
NOBODY = (0, 0, 0, 0)
MOST = 9  # requests of a step that are told; a reader shows one fewer, and that there are more


class StepLine(NamedTuple):
    """A step in one line.

    Args:
        number: of the step.
        rows: of its row map.
        requests: that its rows belong to, in order; the first `MOST` of them.
        calls: of operators.
        sampled: tokens.
    """

    number: int
    rows: int
    requests: tuple[int, ...]
    calls: int
    sampled: int


class IdOf(NamedTuple):
    """The engine's id of a request.

    Args:
        step: number of the one in which it begins.
        request, sequence: its numbers.
        id: see `event.Request`.
    """

    step: int
    request: int
    sequence: int
    id: str


def line_of(number: int, rows: RowMap, calls: int, sampled: int) -> StepLine:
    """The step with this row map, and so many calls and sampled tokens."""
    return StepLine(number, len(rows), tuple(np.unique(rows[:, 0])[:MOST].tolist()), calls, sampled)


@dataclass(slots=True)
class Outline:
    """Sums over steps, which are added one after the other.

    Args:
        steps, rows, sampled: how many there are in all.
        calls: how often each site was called; sites by their names, or by their slots while a segment is written.
        first: the first steps, `FIRST` at most.
        ids: which request the engine calls what; None: there are too many to tell (`MOST_IDS`).
        company: steps in which rows of requests were computed that are not recorded, how many such rows there
            were, the most such requests in one step, and steps without any request that is recorded.
    """

    steps: int = 0
    rows: int = 0
    sampled: int = 0
    calls: Counter[Hashable] = field(default_factory=Counter)
    first: list[StepLine] = field(default_factory=list)
    ids: list[IdOf] | None = field(default_factory=list)
    company: tuple[int, int, int, int] = NOBODY
    _form: Hashable = None
    _sites: Sequence[Hashable] = ()
    _alike: int = 0

    def add(
        self, number: int, rows: RowMap, sampled: int, form: Hashable, sites: Sequence[Hashable],
        begun: Iterable[Request] = (), company: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """A step.

        Args:
            number: of the step.
            rows: its row map.
            sampled: how many tokens it sampled.
            form: what steps with the same calls have in common.
            sites: that were called, one for each call, in order.
            begun: requests that begin in it.
            company: see `event.Step`.
        """
        if company is not None:
            others, requests, passed = company
            self.company = _with(self.company, (int(others > 0), others, requests, passed))
        if len(self.first) < FIRST:
            self.first.append(line_of(number, rows, len(sites), sampled))
        self.steps += 1
        self.rows += len(rows)
        self.sampled += sampled
        if form != self._form:
            self._count()
            self._form, self._sites = form, sites
        self._alike += 1
        if self.ids is not None:
            self.ids += [IdOf(number, r.request, r.sequence, r.id) for r in begun if r.id is not None]
            if len(self.ids) > MOST_IDS:
                self.ids = None

    def said(self) -> str | None:
        """Which company the recorded requests kept, in a sentence; None: they had the engine to themselves."""
        shared, rows, most, passed = self.company
        words = []
        if shared:
            words.append(
                f"in {shared} of {self.steps} steps, the engine also computed rows of requests that are not in "
                f"this trace: {rows} rows, of {most} requests at once at most"
            )
        if passed:
            words.append(f"{passed} more steps had none of this trace's requests")
        return f"Batches had other company: {'; '.join(words)}." if words else None

    def done(self) -> Outline:
        """Itself, once all steps were added."""
        self._count()
        return self

    def _count(self) -> None:
        """Counts the calls of the steps of one form, which mostly follow each other, in one go."""
        for site in self._sites:
            self.calls[site] += self._alike
        self._form, self._sites, self._alike = None, (), 0


def write_outline(outline: Outline, slots: Mapping[Hashable, int] | None = None) -> dict[str, Any]:
    """The record in a segment's END frame; ``slots`` are those of its sites, if it does not have them already."""
    return {
        "rows": outline.rows,
        "sampled": outline.sampled,
        "calls": sorted((site if slots is None else slots[site], count) for site, count in outline.calls.items()),
        "first": outline.first,
        **({"ids": outline.ids} if outline.ids != [] else {}),
        **({"company": outline.company} if outline.company != NOBODY else {}),
    }


def read_outline(data: Mapping[str, Any], steps: int, names: Mapping[int, str]) -> Outline:
    """The inverse of `write_outline`.

    Args:
        data: the record.
        steps: of the segment.
        names: the sites' names by slot.

    Raises:
        KeyError, TypeError, ValueError: it is not one.
    """
    first = [
        StepLine(as_place(number), as_place(rows), tuple([_request(r) for r in requests[:MOST]]), as_place(calls),
                 as_place(sampled))
        for number, rows, requests, calls, sampled in data["first"][:FIRST]
    ]  # fmt: skip
    calls = Counter[Hashable]({names[slot]: as_place(count) for slot, count in data["calls"]})
    ids = data.get("ids", [])
    told = None if ids is None else [_id(*one) for one in ids[: MOST_IDS + 1]]
    shared, others, requests, passed = data.get("company", NOBODY)[:4]
    company = as_place(shared), as_place(others), as_place(requests), as_place(passed)
    return Outline(steps, as_place(data["rows"]), as_place(data["sampled"]), calls, first, told, company)


def _id(step: Any, request: Any, sequence: Any, name: Any) -> IdOf:
    return IdOf(as_place(step), _request(request), as_place(sequence), as_text(name))


def _with(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Two companies in one."""
    return one[0] + other[0], one[1] + other[1], max(one[2], other[2]), one[3] + other[3]


def _request(number: Any) -> int:
    if type(number) is not int or not -1 << 31 <= number < 1 << 31:
        raise ValueError("something else where a request's number belongs")
    return number


def joined(outlines: Iterable[Outline], begins: Iterable[tuple[int, int]]) -> Outline:
    """The outlines of segments that follow each other, renumbered by where each one's requests and steps begin."""
    found = Outline()
    for one, (request, step) in zip(outlines, begins, strict=True):
        found.steps += one.steps
        found.rows += one.rows
        found.sampled += one.sampled
        found.calls.update(one.calls)
        found.company = _with(found.company, one.company)
        lines = [
            line._replace(number=line.number + step, requests=tuple(r + request for r in line.requests))
            for line in one.first
        ]
        found.first = [*found.first, *lines][:FIRST]
        if one.ids is None or found.ids is None:
            found.ids = None
        else:
            found.ids += [i._replace(step=i.step + step, request=i.request + request) for i in one.ids]
    return found
