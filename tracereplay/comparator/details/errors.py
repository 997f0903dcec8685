"""A map of errors: for each site and column one byte, which says how far the worst row there is from golden.

    0         not compared
    1         the same bits
    2 to 128  within tolerance; the error over its allowance, by its logarithm
    129..254  out of tolerance
    255       a value that is finite on one side only, or another integer

Memory is a few bytes a cell, whatever the length of the traces: where rows share a column, the worst one counts,
and its place in the column is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tracereplay.columns.tensors import Array, Ints, TableKey
from tracereplay.comparator.details.scale import Scale
from tracereplay.comparator.numbers.metrics import Floats
from tracereplay.comparator.numbers.results import Mask

__all__ = ["BEYOND", "DECADES", "INFINITE", "SAME", "UNSEEN", "WITHIN", "ErrorMap", "levels"]

UNSEEN, SAME, LEAST, WITHIN, BEYOND, MOST, INFINITE = 0, 1, 2, 128, 129, 254, 255
DECADES = 5.0  # below and above the allowance that have a level of their own

Bytes = npt.NDArray[np.uint8]


def levels(ratio: Floats, beyond: Mask) -> Bytes:
    """The bytes of errors over their allowances; see the module."""
    with np.errstate(divide="ignore"):
        decades = np.clip(np.nan_to_num(np.log10(ratio), neginf=-DECADES, posinf=DECADES), -DECADES, DECADES)
    within = LEAST + np.round((np.minimum(decades, 0) / DECADES + 1) * (WITHIN - LEAST))
    above = BEYOND + np.round(np.maximum(decades, 0) / DECADES * (MOST - BEYOND))
    found = np.where(beyond, np.where(np.isinf(ratio), INFINITE, above), within)
    return found.astype(np.uint8)


class ErrorMap:
    """The map of one side of all sites: of what they give, or of what arrives at them.

    Args:
        scale: the columns.
        sides: which tensors count: ``("out", "written")``, or ``("in",)``.
    """

    def __init__(self, scale: Scale, sides: tuple[str, ...]) -> None:
        self.scale, self._sides = scale, sides
        self._cells: dict[str, Bytes] = {}
        self._places: dict[str, Ints] = {}

    @property
    def cells(self) -> Mapping[str, Bytes]:
        """By site, ``uint8 [columns]``."""
        return self._cells

    @property
    def places(self) -> Mapping[str, Ints]:
        """By site, the row in each column that counts, ``int64 [columns]``."""
        return self._places

    def compared(self, key: TableKey, numbers: Ints) -> None:
        """See `Watch`."""
        if key.side not in self._sides or not len(numbers):
            return
        cells, places = self._of(key.site)
        at = self.scale.places_of(numbers)
        new = at[cells[at // self.scale.width] == UNSEEN][::-1]
        cells[new // self.scale.width] = SAME
        places[new // self.scale.width] = new

    def differ(self, key: TableKey, keys: Array, ratio: Floats, beyond: Mask) -> None:
        """See `Watch`."""
        if key.side not in self._sides:
            return
        cells, places = self._of(key.site)
        at, found = self.scale.places(keys), levels(ratio, beyond)
        worse = np.flatnonzero(found > cells[at // self.scale.width])
        worse = worse[np.argsort(found[worse], kind="stable")]  # of rows in one column the last stands: the worst
        cells[at[worse] // self.scale.width] = found[worse]
        places[at[worse] // self.scale.width] = at[worse]

    def _of(self, site: str) -> tuple[Bytes, Ints]:
        if site not in self._cells:
            self._cells[site] = np.zeros(self.scale.columns, np.uint8)
            self._places[site] = np.zeros(self.scale.columns, np.int64)
        return self._cells[site], self._places[site]
