"""Weights updated during generation, and the rows whose context was computed with older weights.

Attention reads the keys and values of preceding rows from a cache. If the weights change during generation, a row
may be computed with the new weights over a context of the old ones: it is *stale*. An engine that clears its cache
recomputes the context; one that keeps it does not.

Only the steps' row maps and their counts of updates are read, in order:

    weights      0 0 0 │ 1 1 1            0 0 0 │   1     1 1
    rows       0-9 10 11│12 13 14      0-9 10 11│ 0-12   13 14
                        cache kept               cache cleared: rows 0-11 are computed again
    stale               12 13 14                 none

A recomputed row counts as last computed. A prefix from the cache was last computed by a row with the same tokens
up to there. Rows missing from the trace are assumed to be current.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tracereplay.comparator.numbers.exclusions import by_rows
from tracereplay.comparator.numbers.results import Exclusion, Mask, Rows
from tracereplay.comparator.numbers.tables import Array, Ints, PassIndex, StepInfo, Table
from tracereplay.comparator.tokens.generation import Generation
from tracereplay.event import RowKey, rejected
from tracereplay.trace.rows import prefix_digests

__all__ = ["Versions", "computed_again", "of_other_weights", "read_versions"]

_UNKNOWN = np.iinfo(np.int64).max  # a version that no row can be older than


@dataclass(frozen=True)
class Versions:
    """The weights with which the rows of a pass were computed. Versions count from 0, that of the first step.

    Args:
        changes: numbers of the steps before which the weights changed.
        rows: for each sequence, the version of each position's keys and values; ``int64`` of shape ``[tokens]``,
            and a value beyond all versions where that is not known.
        oldest: likewise, of rows that were computed for this very sequence, the oldest version among the row and
            all before it, as they were then.
        sampled: likewise, the version in force when a token was sampled from the row, which is when it was
            computed first.
    """

    changes: tuple[int, ...] = ()
    rows: Mapping[tuple[int, int], Ints] = field(default_factory=dict)
    oldest: Mapping[tuple[int, int], Ints] = field(default_factory=dict)
    sampled: Mapping[tuple[int, int], Ints] = field(default_factory=dict)

    @property
    def stale(self) -> int:
        """Rows that attended to keys and values from older weights than their own."""
        return sum(int(self._stale(key).sum()) for key in self.rows)

    @property
    def first_stale(self) -> RowKey | None:
        """The first of them by request, sequence and position."""
        found = ((key, np.flatnonzero(self._stale(key))) for key in sorted(self.rows))
        return next((RowKey(*key, int(at[0])) for key, at in found if len(at)), None)

    def _stale(self, key: tuple[int, int]) -> Mask:
        known = self.rows[key] != _UNKNOWN
        stale: Mask = known & (self.oldest[key] < self.rows[key])
        return stale

    def describe(self) -> str | None:
        """For the table of settings; None if the weights did not change."""
        if not self.changes:
            return None
        shown = ", ".join(map(str, self.changes[:3])) + (" ..." if len(self.changes) > 3 else "")
        return f"before step {shown}; {self.stale} stale row{'s' if self.stale != 1 else ''}"

    def same_as(self, other: Versions) -> bool:
        """Whether all rows known on both sides have the same weights, and contexts of the same weights.

        Why not the numbers of the steps: engines compose their batches as they like.
        """
        if not self.changes or not other.changes:
            return self.changes == other.changes
        sides = zip(self._tables, other._tables, strict=True)
        return all(_agree(a[key], b[key]) for a, b in sides for key in a.keys() & b.keys())

    @property
    def _tables(self) -> tuple[Mapping[tuple[int, int], Ints], ...]:
        return self.rows, self.oldest, self.sampled

    def at(self, steps: Ints) -> Ints:
        """The versions in force in steps given by their numbers."""
        found: Ints = np.searchsorted(np.array(self.changes, np.int64), steps, side="right")
        return found

    def of(self, keys: Array) -> Ints:
        """The versions of rows given by their keys, ``[rows, 3]``."""
        return self._look_up(self.rows, keys)

    def sampled_of(self, keys: Array) -> Ints:
        """Likewise the versions in force when tokens were sampled from them."""
        return self._look_up(self.sampled, keys)

    def _look_up(self, table: Mapping[tuple[int, int], Ints], keys: Array) -> Ints:
        if not self.changes:
            return np.zeros(len(keys), np.int64)
        none = np.empty(0, np.int64)
        found = np.full(len(keys), _UNKNOWN)
        for i, (request, sequence, position) in enumerate(keys.tolist()):
            known = table.get((request, sequence), none)
            if position < len(known):
                found[i] = known[position]
        return found


def _agree(mine: Ints, theirs: Ints) -> bool:
    """Whether two sequences of versions are the same where both are known."""
    shared = min(len(mine), len(theirs))
    return not _apart(mine[:shared], theirs[:shared]).any()


def _apart(mine: Ints, theirs: Ints) -> Mask:
    found: Mask = (mine != theirs) & (mine != _UNKNOWN) & (theirs != _UNKNOWN)
    return found


def of_other_weights(golden: Versions, candidate: Versions, rows: Rows) -> Exclusion:
    """Rows that the two computed with different weights: no operator causes their differences."""
    same = golden.same_as(candidate)

    def other(table: Table) -> tuple[str, Mask] | None:
        if same:
            return None
        keys = rows.of(table)
        apart = _apart(golden.of(keys), candidate.of(keys))
        return "computed with a different version of the weights", apart | _apart(
            golden.sampled_of(keys), candidate.sampled_of(keys)
        )

    return by_rows(other)


def computed_again(golden: Versions, index: PassIndex, rows: Rows) -> Exclusion:
    """Golden's logits of rows that were recomputed later with different weights.

    What is fed is the later computation, and nobody takes logits of it.
    """

    def again(table: Table) -> tuple[str, Mask] | None:
        if not golden.changes:
            return None
        then = golden.at(index.calls.steps(table.order(np.arange(len(table.ids)))))
        return "recomputed with different weights, and fed from there", _apart(then, golden.of(rows.of(table)))

    return again


def read_versions(steps: Sequence[StepInfo], generation: Generation) -> Versions:
    """The versions of a pass.

    Args:
        steps: of the pass.
        generation: its sequences.
    """
    changes = tuple(now.number for before, now in pairwise(steps) if now.weight_updates != before.weight_updates)
    if not changes:
        return Versions()
    reader = _Reader(generation)
    for step in steps:
        reader.step(step, sum(number <= step.number for number in changes))
    return Versions(changes, reader.cached, reader.oldest, reader.sampled)


class _Reader:
    """Follows the versions of each sequence's keys and values, step by step."""

    def __init__(self, generation: Generation) -> None:
        tokens = generation.tokens
        self._prompts = {key: len(generation.prompts[key[0]]) for key in tokens}
        self._digests = {key: prefix_digests(ids) for key, ids in tokens.items()}
        self._next = dict.fromkeys(tokens, 0)
        self._last: dict[bytes, int] = {}  # by the digest of a beginning: the version that computed it last
        self.cached, self.oldest, self.sampled = (
            {key: np.full(len(ids), _UNKNOWN) for key, ids in tokens.items()} for _ in range(3)
        )

    def step(self, step: StepInfo, version: int) -> None:
        rows = np.frombuffer(step.rows, np.int32).reshape(-1, 3)
        rows = rows[~rejected(rows)]
        sequences, which = np.unique(rows[:, :2], axis=0, return_inverse=True)
        for i, (request, sequence) in enumerate(sequences.tolist()):
            positions = rows[which.reshape(-1) == i, 2]
            if (request, sequence) in self.cached:
                self._compute((request, sequence), int(positions.min()), int(positions.max()) + 1, version)

    def _compute(self, key: tuple[int, int], start: int, stop: int, version: int) -> None:
        cached, oldest, digests = self.cached[key], self.oldest[key], self._digests[key]
        if start != self._next[key]:  # begun, or begun again after a preemption, with what a cache holds
            found = np.array([self._last.get(digest, _UNKNOWN) for digest in digests[:start]], np.int64)
            oldest[:start][found != cached[:start]] = _UNKNOWN
            cached[:start] = found
        cached[start:stop] = version
        oldest[start:stop] = cached[:stop].min(initial=version)
        sampled = self.sampled[key][max(start, self._prompts[key] - 1) : stop]
        np.minimum(sampled, version, out=sampled)  # the first version stays
        self._last.update(dict.fromkeys(digests[start:stop], version))
        self._next[key] = stop
