"""Which column of a map a row is: rows in order of request, sequence and position, some to a column if need be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tracereplay.columns.tensors import Array, Ints

__all__ = ["Run", "Scale"]


class Run(NamedTuple):
    """Rows of one sequence at consecutive positions.

    Args:
        request, sequence, position: of the first.
        place: of the first among all rows.
    """

    request: int
    sequence: int
    position: int
    place: int


class Scale:
    """The places of rows, and the columns that they fall into.

    Args:
        keys: request, sequence and position of each row by its number, ``int64 [numbers, 3]``.
        most: columns; where there are more rows, several consecutive ones share a column.
    """

    def __init__(self, keys: Array, most: int) -> None:
        keys = np.asarray(keys, np.int64).reshape(-1, 3)
        self._spans = keys.max(axis=0, initial=0) + 1
        packed = self._packed(keys)
        self._sorted, self._place = np.unique(packed, return_inverse=True)
        _, first = np.unique(packed, return_index=True)
        self.keys: Ints = keys[first]
        self.width = max(1, -(-len(self._sorted) // most))
        self.columns = -(-len(self._sorted) // self.width)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._sorted)

    def places(self, keys: Array) -> Ints:
        """Of rows that are among those given at first, ``int64 [rows]``."""
        found: Ints = np.searchsorted(self._sorted, self._packed(np.asarray(keys, np.int64)))
        return found

    def places_of(self, numbers: Ints) -> Ints:
        """Of rows by their numbers, ``int64 [rows]``."""
        found: Ints = self._place[numbers]
        return found

    @property
    def runs(self) -> Iterator[Run]:
        """All rows in order."""
        if not len(self.keys):
            return
        follows = (np.diff(self.keys, axis=0) == (0, 0, 1)).all(axis=1)
        for place in (0, *(np.flatnonzero(~follows) + 1).tolist()):
            request, sequence, position = self.keys[place].tolist()
            yield Run(request, sequence, position, place)

    def _packed(self, keys: Ints) -> Ints:
        """One number for each, in the same order."""
        _, sequences, positions = self._spans.tolist()
        packed: Ints = (keys[:, 0] * sequences + keys[:, 1]) * positions + keys[:, 2]
        return packed
