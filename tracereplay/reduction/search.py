"""From a part that shows the same to a smaller one: fewer requests, then tokens, then operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tracereplay.bisector.minimal import OutOfBudget, minimise
from tracereplay.reduction.part import Part
from tracereplay.reduction.whole import Whole

__all__ = ["fewer_operators", "fewer_requests", "fewer_tokens", "first_that_shows"]

Shows = Callable[[Part], bool]


def first_that_shows(parts: Iterable[Part], shows: Shows) -> Part | None:
    """The first of the parts that shows the same; None: none does, or the budget is spent before."""
    try:
        return next(filter(shows, parts), None)
    except OutOfBudget:
        return None


def fewer_requests(part: Part, shows: Shows, first: int | None = None) -> Part:
    """Without requests that are not needed; ``first`` is likely to be."""
    order = sorted(part.requests, key=lambda request: (request != first, request))
    found = minimise(order, lambda kept: shows(_of_requests(part, kept)))
    return _of_requests(part, found.members)


def _of_requests(part: Part, requests: Sequence[int]) -> Part:
    return replace(
        part, requests=tuple(sorted(requests)), tokens={r: n for r, n in part.tokens.items() if r in requests}
    )


def fewer_tokens(whole: Whole, part: Part, shows: Shows) -> Part:
    """With as few generated tokens of each request as show it, by halves."""
    made = {request: min(part.tokens.get(request, n), n) for request, n in whole.made.items() if n}
    kept = {request: n for request, n in made.items() if request in part.requests}

    def limited(most: int) -> Part:
        return replace(part, tokens={request: min(n, most) for request, n in kept.items()})

    behind = part.positions[1]  # the row before it is what shows something, and it has to stay
    needed = 0 if behind is None else behind + 1 - min(whole.prompts[request] for request in part.requests)
    return _by_halves(max(1, needed), max(kept.values(), default=1), limited, part, shows)


def fewer_operators(whole: Whole, part: Part, shows: Shows) -> Part:
    """With as few of golden's first operators as show it, by halves."""
    known = len(whole.units) if part.units is None else max(part.units, default=-1) + 1
    if part.units is not None and len(part.units) < known:  # not the first ones
        return part
    return _by_halves(1, known, lambda most: replace(part, units=frozenset(range(most))), part, shows)


def _by_halves(least: int, most: int, limited: Callable[[int], Part], part: Part, shows: Shows) -> Part:
    """The part of the least limit that shows the same, if more never show less; ``most`` is what ``part`` has."""
    try:
        while least < most:
            middle = (least + most) // 2
            if shows(limited(middle)):
                part, most = limited(middle), middle
            else:
                least = middle + 1
    except OutOfBudget:
        pass
    return part
