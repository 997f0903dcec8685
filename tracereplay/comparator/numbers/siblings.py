"""Which tensors are siblings, and which of them stands apart from the others.

**Siblings** are the same output or input of operators of one class, role and configuration, called alike: with
the same inputs, of the same shapes and dtypes. The same code computes them, on different values. So they round
alike, and one that does not is at fault, however small its error.

A tensor is compared with the *others*: how far is it from their median, in their spread? The spread is 1.48 times
the median absolute deviation, a standard deviation that one or two faulty ones among them do not move. Of three
others it says little; it is therefore pooled with the spread that honest engines show (`PRIOR`), which weighs as
much as `PRIOR_WEIGHT` siblings (a moderated t statistic: Smyth, 2004). TOLERANCES.md has the error rates.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracereplay.comparator.numbers.metrics import normal_deviate
from tracereplay.comparator.numbers.profiles import MEASURES, Profile
from tracereplay.comparator.numbers.tables import PassIndex, TableKey
from tracereplay.comparator.numbers.tally import BIAS_Z
from tracereplay.event import Site
from tracereplay.verdict.measures import Measure

__all__ = ["FEWEST", "Group", "Groups", "Standing", "standing", "standing_in"]

FEWEST = 4  # siblings that can show a spread
PRIOR: Mapping[Measure, float] = {"bias_ulp": 0.05, "differing": 0.05, "relative_l2": 0.3}
PRIOR_WEIGHT = 12
SMALL_L2 = 0.1  # eps; relative L2 is compared by ratios, and this much of it is nothing

# Nothing nearer is apart, in the units of the measure. Five spreads would do by themselves if honest siblings were
# normally distributed; but a first layer may differ from the others, and honest casts lean by 0.25 to 0.5 ulp.
FAR: Mapping[Measure, float] = {"bias_ulp": 0.3, "differing": 0.3, "relative_l2": 1.0}


@dataclass(frozen=True, slots=True)
class Group:
    """What siblings have in common, and nothing else has.

    Args:
        operator, role, built: of the operators; ``built`` is their configuration.
        called: index, dtype and width of each input, and how golden's are related to the candidate's.
        side, index: of the tensor; see `TableKey`.
        signature: its dtype in golden, and its width.
        dtype: in which it is compared.
    """

    operator: str
    role: str
    built: Hashable
    called: Hashable
    side: str
    index: int
    signature: Hashable
    dtype: str


class Groups:
    """Finds the siblings of a pass's tensors.

    Args:
        golden: a pass in the candidate's naming.
        candidate: the other, whose operators say what they were built with.
    """

    def __init__(self, golden: PassIndex, candidate: PassIndex) -> None:
        self._golden, self._sites = golden, candidate.sites
        self._inputs: dict[str, list[Hashable]] = {}
        for key, table in golden.tables.items():
            if key.side == "in":
                self._inputs.setdefault(key.site, []).append((key.index, table.signature()))
        # Where one side's norm is given x and residual and the other's their sum, a table says nothing of it.
        self._relations = {name: pair.relation for name, pair in golden.pairs.items()}

    def group_of(self, key: TableKey, dtype: str) -> Group:
        """What a tensor has in common with its siblings, and with no other; ``dtype`` is its tolerance's."""
        site = self._sites.get(key.site) or self._golden.sites.get(key.site)
        built = ("", "", ()) if site is None else (site.operator, site.role, _configuration(site))
        called = (*self._inputs.get(key.site, ()), self._relations.get(key.site))
        return Group(*built, called, key.side, key.index, self._golden.tables[key].signature(), dtype)


def _configuration(site: Site) -> Hashable:
    """What it was built with, but for its own name and names within that."""
    return tuple(sorted((k, repr(v)) for k, v in site.config.items() if not _names(v, site.name)))


def _names(value: Any, name: str) -> bool:
    return isinstance(value, str) and bool(value) and (value in name or name in value)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a tensor stands among its siblings, in one measure.

    Args:
        measure: it.
        value, median, spread: its own, and the others', in its units.
        score: the distance as a normal deviate.
    """

    measure: Measure
    value: float
    median: float
    spread: float
    score: float

    def is_apart(self, limit: float) -> bool:
        """Whether it is far from them, by more than ``limit`` (ulp, or what stands for it) and beyond chance."""
        return self.score >= BIAS_Z and abs(self.value - self.median) > max(limit, FAR[self.measure])


def standing(own: Profile, others: Sequence[Profile], limit: float) -> tuple[Standing, bool]:
    """Where a tensor stands among at least three others, in the measure in which it is farthest from them.

    Returns:
        it, and whether the tensor stands apart from them, by more than ``limit`` ulp.
    """
    found = [standing_in(measure, own, others) for measure in MEASURES]
    return max(((one, one.is_apart(limit)) for one in found), key=lambda pair: (pair[1], pair[0].score))


def standing_in(measure: Measure, own: Profile, others: Sequence[Profile]) -> Standing:
    """The same in one measure."""
    values = np.array([other[measure].value for other in others])
    scaled = np.log(values + SMALL_L2) if measure == "relative_l2" else values
    center = float(np.median(scaled))
    deviation = 1.4826 * float(np.median(np.abs(scaled - center)))
    weight = len(others) - 1
    variance = (PRIOR_WEIGHT * PRIOR[measure] ** 2 + weight * deviation**2) / (PRIOR_WEIGHT + weight)
    value, error = own[measure]
    unit = value + SMALL_L2 if measure == "relative_l2" else 1.0  # in which a logarithm changes by one
    away = (math.log(unit) if measure == "relative_l2" else value) - center
    # Nearer to golden than the others is no fault, unless it leans less than they do.
    distance = abs(away) if measure == "bias_ulp" else max(away, 0.0)
    spread = math.sqrt(variance * (1 + 1 / len(others)) + (error / unit) ** 2)
    score = normal_deviate(distance / spread, PRIOR_WEIGHT + weight)
    return Standing(measure, value, float(np.median(values)), spread * unit, score)
