"""What a comparison of two passes says: of each tensor what was found, and what golden's rows stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tracereplay.comparator.numbers.tables import LANE, Array, Ints, Table, TableKey
from tracereplay.comparator.numbers.tally import Event, onset_of
from tracereplay.sitemap import Pair
from tracereplay.trace.rows import RowFinder, prefix_digests
from tracereplay.verdict import Coverage, ErrorClass, Metrics, Tolerance
from tracereplay.verdict.measures import precedence

__all__ = ["Comparison", "Exclusion", "Finding", "Mask", "Rows"]

Mask = npt.NDArray[np.bool_]


# An exclusion says which of a golden table's rows are left out: (reason, mask, whether that is as it should be)
Exclusion = Callable[[Table], tuple[str, Mask] | None]


@dataclass(frozen=True)
class Rows:
    """What golden's row numbers stand for.

    Args:
        finder: the numbers.
        tokens: golden's sequences.
    """

    finder: RowFinder
    tokens: Mapping[tuple[int, int], Sequence[int]]

    @cached_property
    def keys(self) -> Array:
        """(request, sequence, position) of each number, ``[rows, 3]``."""
        return np.array(list(self.finder.keys()), np.int64).reshape(-1, 3)

    @cached_property
    def beginnings(self) -> Mapping[tuple[int, int], Ints]:
        """For each sequence and position a number that equal beginnings share."""
        known: dict[bytes, int] = {}
        return {
            key: np.array([known.setdefault(d, len(known)) for d in prefix_digests(ids)], np.int64)
            for key, ids in self.tokens.items()
        }

    @cached_property
    def beginning(self) -> Ints:
        """For each row number the number of its beginning; distinct negative ones where it is not known."""
        found = -2 - np.arange(len(self.keys))
        for i, (request, sequence, position) in enumerate(self.keys.tolist()):
            known = self.beginnings.get((request, sequence), ())
            if position < len(known):
                found[i] = known[position]
        return found

    def of(self, table: Table) -> Array:
        """Keys of a table's rows, ``[rows, 3]``."""
        keys: Array = self.keys[table.ids % LANE]
        return keys


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one tensor over the pass.

    Args:
        calls, rows: compared.
        first_different, first_beyond: the first call with any difference, and with one out of tolerance.
        reason: why it could not be compared, if so.
        pair: what of golden's the site is; None where that was not asked.
        inputs: see `tables.Table.sums`.
    """

    key: TableKey
    operator: str
    role: str
    error_class: ErrorClass
    calls: int
    rows: int
    metrics: Metrics
    tolerance: Tolerance
    first_different: Event | None = None
    first_beyond: Event | None = None
    reason: str | None = None
    pair: Pair | None = None
    inputs: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        return "edge" if self.key.side == "in" else "operator"

    @property
    def onset(self) -> Event | None:
        """The first call out of tolerance, if any."""
        return onset_of(self.error_class, self.first_different, self.first_beyond)


@dataclass(frozen=True)
class Comparison:
    """Everything that was found about two passes; findings are in golden execution order."""

    findings: tuple[Finding, ...]
    coverage: Coverage
    notes: tuple[str, ...]

    def first(self) -> Finding | None:
        """The first finding out of tolerance; see `verdict.measures.precedence`."""
        found = [
            (*precedence(f.error_class, onset.order), f.key.rank, i)
            for i, f in enumerate(self.findings)
            if (onset := f.onset)
        ]
        return self.findings[min(found)[-1]] if found else None

    def first_different(self) -> Finding | None:
        """The first finding with any difference, in golden execution order."""
        found = [(event.order, f.key.rank, i) for i, f in enumerate(self.findings) if (event := f.first_different)]
        return self.findings[min(found)[-1]] if found else None
