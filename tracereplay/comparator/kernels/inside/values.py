"""Comparing two tensors of two batches: the rows that both have, and how they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracereplay.comparator.numbers.dtypes import coarser, is_float
from tracereplay.comparator.numbers.tables import Array, Ints
from tracereplay.comparator.numbers.tally import compare_rows
from tracereplay.comparator.numbers.tolerance import Policy, tally_for, tolerance_for, unit_factors
from tracereplay.event import RowMap, Value
from tracereplay.verdict.measures import ErrorClass, Metrics, severity

__all__ = ["Difference", "Values", "described", "worst"]


@dataclass(frozen=True, slots=True)
class Difference:
    """How two tensors differ."""

    error_class: ErrorClass
    metrics: Metrics


def worst(differences: Sequence[Difference]) -> Difference | None:
    """The worst of them, None without any."""
    return max(differences, key=lambda d: severity(d.error_class, d.metrics.allowance_ratio), default=None)


def described(value: Value) -> str:
    """``bfloat16[2, 128]``."""
    return f"{value.dtype}{list(value.shape)}"


@dataclass(frozen=True)
class Values:
    """Compares tensors of one call of golden's with those of one call of the candidate's.

    Args:
        golden, candidate: places of the rows that both have, in their batches.
        sizes: rows of either batch.
        keys: of these rows, ``[rows, 3]``.
        step: golden's.
        site: for tolerances.
        policy: tolerances.
    """

    golden: Ints
    candidate: Ints
    sizes: tuple[int, int]
    keys: RowMap
    step: int
    site: str
    policy: Policy

    def forms(self, mine: Value, theirs: Value) -> bool:
        """Whether the two can be compared: as many elements for each row, both of numbers or both of integers."""
        if is_float(mine.dtype) != is_float(theirs.dtype):
            return False
        return self._width(mine, 0) == self._width(theirs, 1) is not None

    def compare(self, mine: Value, theirs: Value, kernel: str) -> Difference | None:
        """How they differ on the rows that both have; None if unknown, or ignored by the policy."""
        if not self.forms(mine, theirs):
            return None
        dtype = coarser(mine.dtype, theirs.dtype) if is_float(mine.dtype) else mine.dtype
        tolerance = tolerance_for(self.policy, self.site, kernel, dtype, "operator")
        if tolerance is None:
            return None
        tally = tally_for(self.policy, tolerance, self.site, kernel, "operator", conventional=True)
        rows = len(self.keys)
        compare_rows(
            tally, self._rows(mine, self.golden, 0), self._rows(theirs, self.candidate, 1),
            (mine.dtype, theirs.dtype), unit_factors(tolerance), np.abs,
            lambda: (self.keys, np.zeros(rows, np.int64), np.full(rows, self.step)),
        )  # fmt: skip
        return Difference(tally.error_class, tally.metrics)

    def _width(self, value: Value, side: int) -> int | None:
        """Elements for each row of the batch; None where it is no tensor of rows."""
        if not value.shape or not value.shape[0] or value.shape[0] % self.sizes[side]:
            return None
        return math.prod(value.shape) // self.sizes[side]

    def _rows(self, value: Value, places: Ints, side: int) -> Array:
        width = self._width(value, side)
        assert width is not None
        found: Array = value.numpy().reshape(self.sizes[side], width)[places]
        return found
