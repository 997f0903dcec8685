"""Parts that are likely to show the same, the smallest first.

Where something is seen, one request, cut right behind it, mostly shows it too; a bias needs many rows, and a fault
that only a large batch has, all requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tracereplay.reduction.part import Part
from tracereplay.reduction.whole import Whole
from tracereplay.verdict import Divergence

__all__ = ["guesses"]


def guesses(whole: Whole) -> Iterator[Part]:
    """Parts from small to large; the last one is all of it."""
    verdict, shown = whole.verdict, whole.shown
    first, token = verdict.first_divergence, shown.token
    if verdict.mode == "isolated":
        yield from _of_calls(whole)
    elif first is not None:
        if first.request in whole.requests:  # or steps name one that the trace does not describe
            yield from _of_place(whole, first)
    elif token is not None:
        if token.request in whole.requests:
            yield from _of_token(whole, token.request, token.position)
    else:
        yield from _of_anything(whole)
    yield whole.part()


def _of_place(whole: Whole, first: Divergence) -> Iterator[Part]:
    """Operators up to the first divergence, at the row that shows it."""
    unit = whole.unit_of(first.site)
    units = frozenset(range(unit + 1))
    kernels = _kernels(whole)
    one = Part(
        (first.request,), _until(whole, first.request, first.position + 1), units,
        (first.position, first.position + 1), kernels,
    )  # fmt: skip
    yield one
    yield replace(one, positions=(0, first.position + 1))
    yield replace(one, positions=(0, None))
    yield replace(one, tokens={}, positions=(0, None))
    yield from _of_all(whole, first.step, units, kernels)


def _of_token(whole: Whole, request: int, position: int) -> Iterator[Part]:
    """Up to a token: what there is of operators is to show that they only round."""
    units, kernels = _until_rounding(whole), _kernels(whole)
    one = Part((request,), _until(whole, request, position), units, (position - 1, position), kernels)
    yield one
    yield replace(one, positions=(0, position))
    yield replace(one, units=None, positions=(position - 1, position))
    yield replace(one, units=None, positions=(0, None))
    yield replace(one, units=None, positions=(0, None), tokens={})
    yield Part(whole.requests, {}, None, (0, None), kernels)


def _of_anything(whole: Whole) -> Iterator[Part]:
    """Nothing is to be seen: a request and a token of it."""
    request = min(whole.requests, key=lambda n: (whole.prompts[n] == 0, whole.prompts[n]), default=None)
    if request is None:
        return
    one = Part((request,), {request: 1}, frozenset({0}) if whole.units else None, (0, None), frozenset())
    yield one
    yield replace(one, units=None)
    yield replace(one, units=None, tokens={})
    yield Part(whole.requests, dict.fromkeys(whole.requests, 1), None, (0, None), frozenset())


def _of_calls(whole: Whole) -> Iterator[Part]:
    """Calls that ran one by one: each stands for itself, and kernels are paired by their places in a step."""
    first = whole.verdict.first_divergence
    if first is None:
        step = min((record.number for record in whole.golden.records("record")), default=0)
        yield from _of_all(whole, step, frozenset({0}), None)
        return
    yield from _of_all(whole, first.step, frozenset({whole.unit_of(first.site)}), None)


def _of_all(whole: Whole, step: int, units: frozenset[int], kernels: frozenset[int] | None) -> Iterator[Part]:
    """All requests that had begun by then."""
    tokens = whole.made_until(step)
    begun = tuple(sorted(tokens))
    if begun:
        yield Part(begun, tokens, units, (0, None), kernels)
    yield Part(whole.requests, {}, units, (0, None), kernels)


def _until(whole: Whole, request: int, position: int) -> dict[int, int]:
    """The tokens of a request up to the one at a position."""
    return {request: max(1, position - whole.prompts[request] + 1)}


def _until_rounding(whole: Whole) -> frozenset[int] | None:
    """Operators up to the first that does not give the same bits; None: all."""
    differing = (o for o in whole.verdict.operators if o.error_class not in ("identical", "incomparable"))
    places = [whole.unit_of(operator.site) for operator in differing]
    return frozenset(range(min(places) + 1)) if places else None


def _kernels(whole: Whole) -> frozenset[int] | None:
    """The operator whose kernels a verdict shows; none of the others' are needed."""
    if whole.golden.run.level != "kernel":
        return None
    inside = whole.verdict.kernels
    return frozenset() if inside is None else frozenset({whole.unit_of(inside.site)})
