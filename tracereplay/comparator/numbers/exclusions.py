"""Rows that are not compared, and why; each exclusion is a function from a table to a reason and a mask."""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np

from tracereplay.comparator.numbers.dtypes import is_float
from tracereplay.comparator.numbers.results import Exclusion, Mask, Rows
from tracereplay.comparator.numbers.tables import (
    LANE,
    Array,
    PassIndex,
    Pattern,
    Table,
    TableKey,
    gather,
    pair_rows,
    surely_equal,
)
from tracereplay.comparator.tokens.generation import Generation

__all__ = [
    "after_parting", "by_rows", "drawn_at_random", "other_integers", "past_the_end", "unfed_calls",
    "unfed_context", "unfed_input",
]  # fmt: skip


READS_EARLIER = ("attention", "mixer", "convolution")  # roles of operators that keep something of earlier rows
AT_ONCE = 1024  # rows whose integers are compared at a time


def after_parting(parted: Mapping[tuple[int, int], int], rows: Rows) -> Exclusion:
    """Rows from the position where a sequence's tokens diverge: their input tokens differ."""

    def after(table: Table) -> tuple[str, Mask]:
        keys = rows.of(table)
        limits = np.array([parted.get((r, s), 1 << 40) for r, s in keys[:, :2].tolist()], np.int64)
        return "after the request's first differing token", keys[:, 2] >= limits

    return by_rows(after)


def past_the_end(mine: Generation, rows: Rows) -> Exclusion:
    """Rows behind the one that gave a sequence's last token: an engine that works ahead may compute them."""
    ends = {key: len(ids) - 1 for key, ids in mine.tokens.items() if len(ids) > len(mine.prompts[key[0]])}

    def behind(table: Table) -> tuple[str, Mask]:
        keys = rows.of(table)
        limits = np.array([ends.get((r, s), 1 << 40) for r, s in keys[:, :2].tolist()], np.int64)
        return "past the end of the generation", keys[:, 2] >= limits

    return by_rows(behind)


def drawn_at_random(mine: Generation, index: PassIndex, rows: Rows) -> Exclusion:
    """A token drawn at random is not an operator's result."""
    drawn = [request for request, greedy in enumerate(mine.greedy) if not greedy]

    def sampled(table: Table) -> tuple[str, Mask] | None:
        site = index.sites.get(table.key.site)
        chosen = site is not None and site.role == "sampler" and (table.key.side, table.key.index) == ("out", 0)
        if not chosen or not drawn:
            return None
        return "drawn at random (temperature above 0)", np.isin(rows.of(table)[:, 0], drawn)

    return sampled


def unfed_input(index: PassIndex, rows: Rows) -> Exclusion:
    """A row of a result shows the operator's own error only if golden had that row of each input to feed."""
    inputs: dict[str, list[Table]] = {}
    for key, table in index.tables.items():
        if key.side == "in" and table.tensors and is_float(table.tensors[0].dtype):
            inputs.setdefault(key.site, []).append(table)

    def unfed(table: Table) -> tuple[str, Mask] | None:
        if table.key.side == "in":
            return None
        mask = np.zeros(len(table.ids), bool)
        for given in inputs.get(table.key.site, ()):
            if given.pattern is not table.pattern and not (
                len(given.ids) == len(table.ids) and (given.ids == table.ids).all()
            ):
                mask |= ~np.isin(rows.beginning[table.ids % LANE], rows.beginning[given.ids % LANE])
        return "unfed input: golden lacks this row of an input", mask

    return unfed


def unfed_calls(golden: PassIndex, candidate: PassIndex, inside: Container[TableKey] = ()) -> Exclusion:
    """Results of calls that were not given all that golden was given, as the candidate says of each call.

    Args:
        golden, candidate: as they were recorded.
        inside: golden's inputs that the candidate's operator makes itself, of golden's; see `gates`.
    """
    needed: dict[str, set[int]] = {}
    for key, table in golden.tables.items():
        if key.side == "in" and key not in inside and table.tensors and is_float(table.tensors[0].dtype):
            needed.setdefault(key.site, set()).add(key.index)
    lacking = candidate.calls.where(
        lambda call: call.fed is not None and not needed.get(call.site, set()) <= set(call.fed)
    )

    def unfed(table: Table) -> tuple[str, Mask] | None:
        other = candidate.tables.get(table.key)
        if table.key.side == "in" or table.key.site not in lacking or other is None:
            return None
        every = np.arange(len(other.ids))
        ids = other.ids[np.isin(other.order(every), lacking[table.key.site])]
        return "unfed input: the candidate could not be given golden's", np.isin(table.ids, ids)

    return unfed


def other_integers(golden: PassIndex, candidate: PassIndex) -> Exclusion:
    """Integers are compared and never fed: where a row's own differ, its results are no fault of the operator."""
    inputs: dict[str, list[Table]] = {}
    for key, table in golden.tables.items():
        if key.side == "in" and table.tensors and not is_float(table.tensors[0].dtype):
            inputs.setdefault(key.site, []).append(table)
    known: dict[str, list[tuple[int, Array]]] = {}
    integers = _Integers()

    def misled(table: Table) -> tuple[str, Mask] | None:
        site = table.key.site
        if table.key.side == "in" or site not in inputs:
            return None
        if site not in known:
            found = ((t.key.index, integers.differing(t, candidate.tables.get(t.key))) for t in inputs[site])
            known[site] = [(index, ids) for index, ids in found if len(ids)]
        if not known[site]:
            return None
        indices = ", ".join(str(index) for index, _ in known[site])
        wrong = np.concatenate([ids for _, ids in known[site]])
        return f"its integer input {indices} differs, and integers are never fed", np.isin(table.ids, wrong)

    return misled


class _Integers:
    """Compares integers, once where several operators are given the same tensor."""

    def __init__(self) -> None:
        self._known: dict[object, Array] = {}

    def differing(self, golden: Table, candidate: Table | None) -> Array:
        """Numbers of the rows whose integers differ; those of no row where the two cannot be compared."""
        none = golden.ids[:0]
        if candidate is None or golden.column is None or candidate.column is None:
            return none
        mine, theirs = golden.signature(), candidate.signature()
        if mine is None or theirs is None or mine[1] != theirs[1] or is_float(theirs[0]):
            return none
        key = golden.column.content(), candidate.column.content()
        if key not in self._known:
            self._known[key] = _differing(golden, candidate)
        return self._known[key]


def _differing(golden: Table, candidate: Table) -> Array:
    pairs = pair_rows(golden, candidate)
    found = [golden.ids[:0]]
    for start in range(0, len(pairs.golden), AT_ONCE):
        mine, theirs = (x[start : start + AT_ONCE] for x in (pairs.golden, pairs.candidate))
        if not surely_equal(golden, mine, candidate, theirs):
            apart = gather(golden, mine, alone=True) != gather(candidate, theirs, alone=True)
            found.append(golden.ids[mine[apart.any(axis=1)]])
    return np.concatenate(found)


def by_rows(exclusion: Exclusion) -> Exclusion:
    """Asks once for all tables whose rows are the same."""
    known: dict[Pattern, tuple[str, Mask] | None] = {}

    def asked(table: Table) -> tuple[str, Mask] | None:
        if table.pattern is None:
            return exclusion(table)
        if table.pattern not in known:
            known[table.pattern] = exclusion(table)
        return known[table.pattern]

    return asked


def unfed_context(index: PassIndex, rows: Rows) -> Exclusion:
    """A row of what reads earlier ones shows its own error only if each of these was fed golden values."""
    known: dict[Pattern, Mask] = {}

    def unfed(table: Table) -> tuple[str, Mask] | None:
        site = index.sites.get(table.key.site)
        if table.key.side == "in" or site is None or site.role not in READS_EARLIER:
            return None
        pattern = table.pattern
        if pattern is None:
            return None
        if pattern not in known:
            known[pattern] = _beyond_fed(table, rows)
        return "unfed context: golden lacks earlier rows of the sequence", known[pattern]

    return unfed


def _beyond_fed(table: Table, rows: Rows) -> Mask:
    """Rows whose context has a gap: those past the first position that golden has not."""
    fed = np.unique(rows.beginning[table.ids % LANE])
    gaps = {}
    for key, beginnings in rows.beginnings.items():
        missing = np.flatnonzero(~np.isin(beginnings, fed))
        gaps[key] = int(missing[0]) if len(missing) else len(beginnings)
    keys = rows.of(table)
    limits = np.array([gaps.get((r, s), 0) for r, s in keys[:, :2].tolist()], np.int64)
    return np.asarray(keys[:, 2] > limits)
