"""Who is told of every row while two passes are compared, such as the maker of a map of errors."""

from __future__ import annotations

from typing import Protocol

from tracereplay.comparator.numbers.metrics import Floats
from tracereplay.comparator.numbers.results import Mask
from tracereplay.comparator.numbers.tables import Array, Ints, TableKey

__all__ = ["Watch"]


class Watch(Protocol):
    """Told of each tensor first which of its rows are compared, then, part by part, how those that differ do."""

    def compared(self, key: TableKey, numbers: Ints) -> None:
        """Rows by their numbers (`results.Rows`), ``int64 [rows]``."""

    def differ(self, key: TableKey, keys: Array, ratio: Floats, beyond: Mask) -> None:
        """Rows that differ.

        Args:
            key: the tensor.
            keys: request, sequence and position of each, ``int64 [rows, 3]``.
            ratio: of its error to the allowance; infinite where a value is finite on one side only.
            beyond: whether it is out of tolerance.
        """
