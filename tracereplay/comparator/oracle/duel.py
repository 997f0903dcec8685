"""Two results and a reference: their errors, and whether one is significantly nearer.

For each row both relative L2 errors are taken, and of their squares ``(g - c) / ((g + c) / 2)``: -2 where golden
alone is exact, 0 where both err alike. ``nearer`` needs two things of the mean over distinct rows: at least
`AMOUNT`, and `SCORE` standard errors from zero. Rows are the samples, since elements of a row share errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tracereplay.comparator.numbers.dtypes import eps, smallest, widen
from tracereplay.comparator.numbers.metrics import lean_score
from tracereplay.comparator.numbers.tables import Array
from tracereplay.comparator.numbers.tally import BIAS_ROWS, BIAS_Z
from tracereplay.verdict.oracle import Nearer, OracleError

__all__ = ["AMOUNT", "SCORE", "Duel"]

Floats = npt.NDArray[np.float64]

AMOUNT = 0.05
SCORE = BIAS_Z
CLIP = 2.0  # ulp


@dataclass(slots=True)
class _Side:
    """What was found of one side: of each row its squared relative error; sums over elements."""

    squares: list[Floats] = field(default_factory=list)
    max_ulp: float = 0.0
    lean: float = 0.0

    def error(self, elements: int) -> OracleError:
        squares = np.concatenate(self.squares) if self.squares else np.zeros(1)
        return OracleError(float(np.sqrt(squares.mean())), self.max_ulp, self.lean / max(elements, 1))


@dataclass(slots=True)
class Duel:
    """Gathers rows of golden, candidate and reference."""

    rows: int = 0
    elements: int = 0
    differ: bool = False
    _golden: _Side = field(default_factory=_Side)
    _candidate: _Side = field(default_factory=_Side)

    def add(
        self, golden: Array, candidate: Array, references: tuple[Floats, Floats], dtypes: tuple[str, str]
    ) -> None:
        """Counts rows.

        Args:
            golden, candidate: ``[rows, width]`` in storage dtype.
            references: what either should be, ``[rows, width]``; the same where both had the same inputs.
            dtypes: torch's names.
        """
        self.rows += len(golden)
        self.elements += golden.size
        for side, result, dtype, exact in zip(
            (self._golden, self._candidate), (golden, candidate), dtypes, references, strict=True
        ):
            with np.errstate(invalid="ignore"):  # of a NaN with a payload
                wide = widen(result, dtype).astype(np.float64)
            _add(side, wide, exact, dtype)
        self.differ |= bool(np.any(self._golden.squares[-1] != self._candidate.squares[-1]))

    @property
    def errors(self) -> tuple[OracleError, OracleError]:
        """Golden's and the candidate's."""
        return self._golden.error(self.elements), self._candidate.error(self.elements)

    @property
    def nearer(self) -> Nearer:
        """Which side is nearer; ``equal`` if not significant, or if the amount is small."""
        if not self.differ:
            return "equal"
        g, c = (np.concatenate(side.squares) for side in (self._golden, self._candidate))
        both = np.stack([g, c], axis=1)
        # Rows of one and the same token have one and the same error; they are one sample, not many.
        g, c = np.unique(both, axis=0).T
        balance = np.divide(g - c, (g + c) / 2, out=np.zeros_like(g), where=g + c > 0)
        mean, score = lean_score(balance)
        if len(balance) < BIAS_ROWS or abs(mean) < AMOUNT or abs(score) < SCORE:
            return "equal"
        return "candidate nearer" if mean > 0 else "golden nearer"


def _add(side: _Side, result: Floats, exact: Floats, dtype: str) -> None:
    finite = np.isfinite(result) & np.isfinite(exact)
    error = np.subtract(result, exact, out=np.zeros_like(exact), where=finite)
    broken = ~finite & ~((result == exact) | (np.isnan(result) & np.isnan(exact)))
    size = np.where(finite, np.abs(exact), 0.0)
    norm, off = (np.square(x).sum(axis=1) for x in (size, error))
    squares = np.divide(off, norm, out=np.where(off > 0, np.inf, 0.0), where=norm > 0)
    squares[broken.any(axis=1)] = np.inf
    side.squares.append(squares)
    ulp = np.maximum(np.ldexp(1.0, np.frexp(size)[1] - 1) * eps(dtype), smallest(dtype))
    ulps = error / ulp
    large = size >= np.sqrt(norm / max(size.shape[1], 1))[:, None]
    side.max_ulp = max(side.max_ulp, float(np.abs(ulps[large]).max(initial=0.0)))
    side.lean += float((np.clip(ulps, -CLIP, CLIP) * np.sign(np.where(finite, exact, 0.0))).sum())
