"""Golden's steps in the candidate's naming: calls renamed, joined side by side, cut apart, or reordered.

Nothing is computed: a joined, cut or reordered tensor has golden's bits, read when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tracereplay.dtypes import itemsize
from tracereplay.event import Call, Layout, Site, Step, Value
from tracereplay.sitemap.pair import HeadOrder, Pair, outputs_of

__all__ = ["SiteMap"]


class SiteMap:
    """What golden has of each of the candidate's sites.

    Args:
        golden, candidate: the sites of both, with their roles.
        pairs: by the candidate's site.
        apart: golden's sites that are known to have no pair, with the reason.
    """

    def __init__(
        self, golden: Mapping[str, Site], candidate: Mapping[str, Site], pairs: Mapping[str, Pair],
        apart: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._golden, self._candidate, self.pairs, self.apart = golden, candidate, pairs, apart or {}
        self._of: dict[str, list[Pair]] = {}  # by golden's site
        for pair in pairs.values():
            for name in pair.golden:
                self._of.setdefault(name, []).append(pair)
        self._refused: dict[str, bool] = {}  # of joined sites: whether golden gave the parts different inputs
        self._same = all(pair.plain for pair in pairs.values())

    @cached_property
    def sites(self) -> Mapping[str, Site]:
        """Golden's sites in the candidate's naming; those that the candidate has not keep their names."""
        found: dict[str, Site] = {}
        for name, site in self._golden.items():
            pairs = self._of.get(name)
            for translated in [site] if pairs is None else [self._site(pair) for pair in pairs]:
                found.setdefault(translated.name, translated)
        return found

    @property
    def given_sums(self) -> frozenset[str]:
        """The candidate's norms that are given the sum of what golden's were given as x and residual."""
        return frozenset(
            pair.site
            for pair in self.pairs.values()
            if self._candidate[pair.site].role == "norm" and len(self._candidate[pair.site].inputs) == 1
            and len(self._golden[pair.golden[0]].inputs) > 1
        )  # fmt: skip

    def step(self, step: Step) -> Step:
        """A step of golden's in the candidate's naming; a joined call stands where its last part stood.

        What cannot be translated (a part did not run, or its form is another) keeps its name.
        """
        if self._same:
            return step
        calls: list[Call] = []
        waiting: dict[tuple[str, int], dict[str, Call]] = {}
        for call in step.calls:
            for pair in self._of.get(call.site, ()):
                if len(pair.golden) == 1:
                    made = self._single(call, pair)
                    if not (calls and calls[-1] is made):  # one call, into however many parts it could not be cut
                        calls.append(made)
                    continue
                parts = waiting.setdefault((pair.site, call.number), {})
                parts[call.site] = call
                if len(parts) == len(pair.golden):
                    calls += self._joined(waiting.pop((pair.site, call.number)), pair)
            if call.site not in self._of:
                calls.append(call)
        calls += [call for parts in waiting.values() for call in parts.values()]
        return replace(step, calls=tuple(calls))

    # -- sites ------------------------------------------------------------------------------------------

    def _site(self, pair: Pair) -> Site:
        golden, candidate = self._golden[pair.golden[0]], self._candidate[pair.site]
        if pair.plain:
            return golden
        if len(pair.golden) > 1:
            return replace(candidate, layouts=self._layouts([self._golden[name] for name in pair.golden]))
        if pair.part is not None:
            return replace(candidate, layouts=_layouts_of_part(golden, pair.part[0]))
        return replace(golden, name=candidate.name, operator=candidate.operator, slot=candidate.slot)

    def _layouts(self, parts: Sequence[Site]) -> Mapping[str, Layout]:
        """How the ranks' joined tensors are cut: their parts one after the other."""
        found = {name: layout for name, layout in parts[0].layouts.items() if name.startswith("in")}
        layouts = [part.layouts.get("out0") for part in parts]
        if all(layouts):
            sizes: list[int] = []
            copies: list[int] = []
            for part, layout in zip(parts, layouts, strict=True):
                outputs = outputs_of(part)
                assert layout is not None
                assert outputs is not None  # or it would not have been paired so
                unit = outputs // sum(layout.parts)
                sizes += [unit * share for share in layout.parts]
                copies += layout.copies
            found["out0"] = Layout(-1, tuple(sizes), tuple(copies))
        return found

    # -- calls ------------------------------------------------------------------------------------------

    def _single(self, call: Call, pair: Pair) -> Call:
        if pair.order is not None:
            given = [_reordered(value, pair.order) for value in call.outputs[:1]]
            outputs = tuple(filter(None, given))
            return replace(call, site=pair.site, outputs=outputs, written={}) if outputs else call
        if pair.part is None:
            return call if pair.plain else replace(call, site=pair.site)
        number, shares = pair.part
        parts = [_part(value, number, shares) for value in call.outputs[:1]]
        if None in parts:
            return call
        return replace(call, site=pair.site, outputs=tuple(filter(None, parts)), written={})

    def _joined(self, parts: Mapping[str, Call], pair: Pair) -> list[Call]:
        calls = [parts[name] for name in pair.golden]
        columns = list(zip(*(call.outputs for call in calls), strict=False))
        same_rows = all(_same_rows(call, calls[0]) for call in calls)
        if not same_rows or not all(map(_fit, columns)) or self._of_different_inputs(pair, calls):
            return calls
        outputs = tuple(map(_side_by_side, columns))
        return [replace(calls[0], site=pair.site, outputs=outputs, written={})]

    def _of_different_inputs(self, pair: Pair, calls: Sequence[Call]) -> bool:
        """Whether the parts are no parts of one operator; the first call tells, that not all is read thrice."""
        if pair.site not in self._refused:
            given = {tuple((value.dtype, value.shape, value.load()) for value in call.inputs) for call in calls}
            self._refused[pair.site] = len(given) > 1
        return self._refused[pair.site]


def _same_rows(one: Call, other: Call) -> bool:
    pairs = (one.rows_in, other.rows_in), (one.rows_out, other.rows_out)
    return all(mine is theirs or np.array_equal(mine, theirs) for mine, theirs in pairs)


def _layouts_of_part(golden: Site, number: int) -> Mapping[str, Layout]:
    found = {name: layout for name, layout in golden.layouts.items() if name.startswith("in")}
    layout = golden.layouts.get("out0")
    if layout is not None:
        found["out0"] = Layout(layout.dim, (1,), (layout.copies[number],))
    return found


# Values, by their bits: numpy has no bfloat16, and an engine no ml_dtypes.


def _fit(values: Sequence[Value]) -> bool:
    return len({(value.dtype, value.shape[:-1]) for value in values}) == 1 and bool(values[0].shape)


def _side_by_side(values: Sequence[Value]) -> Value:
    """The values joined along their last dimension."""

    def load() -> bytes:
        return np.concatenate([_bits(value) for value in values], axis=-1).tobytes()

    width = sum(value.shape[-1] for value in values)
    return _made(values[0].dtype, (*values[0].shape[:-1], width), load)


def _part(value: Value, number: int, shares: tuple[int, ...]) -> Value | None:
    """One of the parts that lie side by side along the value's last dimension; None if they cannot."""
    size, total = value.shape[-1] if value.shape else 1, sum(shares)
    if size % total:
        return None
    start = sum(shares[:number]) * (size // total)
    stop = start + shares[number] * (size // total)

    def load() -> bytes:
        return np.ascontiguousarray(_bits(value)[..., start:stop]).tobytes()

    return _made(value.dtype, (*value.shape[:-1], stop - start), load)


def _reordered(value: Value, order: HeadOrder) -> Value | None:
    """Golden's q, k and v in the candidate's order; None if the value has not as many numbers."""
    if not value.shape or value.shape[-1] != order.width:
        return None

    def load() -> bytes:
        return np.ascontiguousarray(_bits(value)[..., order.places()]).tobytes()

    return _made(value.dtype, value.shape, load)


def _bits(value: Value) -> npt.NDArray[np.void]:
    return np.frombuffer(value.load(), np.dtype((np.void, itemsize(value.dtype)))).reshape(value.shape)


def _made(dtype: str, shape: tuple[int, ...], load: Callable[[], bytes]) -> Value:
    strides = tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))
    return Value(dtype, shape, strides, load)
