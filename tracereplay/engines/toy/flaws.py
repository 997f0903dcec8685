"""Faults to plant: their kinds, and what each does to a tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias

import numpy as np

from tracereplay.engines.toy.names import NAMES, names_of
from tracereplay.engines.toy.numerics import Array, Numerics, epsilon
from tracereplay.engines.toy.sites import sites
from tracereplay.errors import UsageError
from tracereplay.event import RowMap
from tracereplay.workload import Prompt

__all__ = ["EDGE_FLAWS", "OPERATOR_FLAWS", "Flaw", "Planted", "flaws_of"]

OPERATOR_FLAWS = (
    "scale", "element", "eps", "nan", "rotary", "stale", "wrong_row", "coarse", "floor", "truncate", "slight",
    "short", "second", "crowded",
)  # fmt: skip
EDGE_FLAWS = ("scaled_edge", "positions", "swap")
_EVERYWHERE = ("positions", "swap")  # at any site

Decoding: TypeAlias = list[tuple[int, bool]]  # rows of generated tokens; whether each is its sequence's last
Stored: TypeAlias = np.dtype[Any]


@dataclass(frozen=True)
class Flaw:
    """A planted fault.

    Args:
        site: the operator that is wrong; for a fault between operators, the one where it arrives.
        kind: in an operator, at its first output

            - ``scale``: 3 % too large
            - ``element``: one element off by five times its row's RMS, in decode only
            - ``eps``: a norm built with an epsilon of 0.5
            - ``nan``: one NaN, in each sequence's last step
            - ``rotary``: rotated by one position too many
            - ``stale``: attention reads the key and value of one earlier position as they were before it
            - ``wrong_row``: the embedding of another token, at position 1
            - ``coarse``: rounded to three bits of mantissa
            - ``floor``: rounded towards minus infinity instead of to nearest
            - ``truncate``: rounded towards zero instead of to nearest
            - ``slight``: 0.2 % too large before it is rounded
            - ``short``: 0.3 % too small before it is rounded
            - ``second``: the sampler takes the second-best token
            - ``crowded``: rounded to three bits of mantissa in calls of at least ``index`` rows

            between operators

            - ``scaled_edge``: input ``index`` is 3 % too large
            - ``positions``: positions are one too high
            - ``swap``: layers 0 and 1 run in the other order
        index: input of an edge fault; number of rows of ``crowded``.
    """

    site: str
    kind: str
    index: int = 0

    def __post_init__(self) -> None:
        known = OPERATOR_FLAWS + EDGE_FLAWS
        if self.kind not in known:
            raise UsageError(f"The toy engine knows no flaw {self.kind!r}; it knows {', '.join(known)}.")


def flaws_of(text: str) -> list[Flaw]:
    """The flaws of a text: SITE:KIND or SITE:KIND:INDEX, several separated by commas.

    Raises:
        UsageError: it is malformed, or there is no such site or kind.
    """
    return [_flaw(one.strip()) for one in text.split(",")] if text else []


def _flaw(text: str) -> Flaw:
    site, _, rest = text.partition(":")
    kind, _, index = rest.partition(":")
    if not site or not kind or not (index or "0").isdecimal():
        raise UsageError(f"The flaw {text!r} is not of the form SITE:KIND or SITE:KIND:INDEX.")
    known = [s.name for naming in NAMES for s in sites(1, "float32", names_of(naming))]
    if site not in known and kind not in _EVERYWHERE:
        close = get_close_matches(site, known, n=1) or known[:1]
        raise UsageError(f"The toy engine has no operator {site!r} to plant a flaw in; did you mean {close[0]!r}?")
    return Flaw(site, kind, int(index or 0))


class Planted:
    """Applies the flaws in the engine.

    Args:
        flaws: any number.
        prompts: by which decoded rows are known.
    """

    def __init__(self, flaws: Sequence[Flaw], numerics: Numerics, prompts: Sequence[Prompt]) -> None:
        self._flaws, self._numerics, self._prompts = flaws, numerics, prompts

    def has(self, kind: str) -> bool:
        """Whether a flaw of this kind is planted anywhere."""
        return any(flaw.kind == kind for flaw in self._flaws)

    def sits(self, kind: str, site: str) -> bool:
        """Whether a flaw of this kind sits at ``site``."""
        return any((flaw.kind, flaw.site) == (kind, site) for flaw in self._flaws)

    def edge(self, site: str, index: int, x: Array) -> Array:
        """``x`` as it arrives at input ``index`` of ``site``."""
        wrong = Flaw(site, "scaled_edge", index) in self._flaws
        return self._numerics.rounded(x * 1.03) if wrong else x

    def flawed(self, site: str, x: Array, rows: RowMap) -> Array:
        """``x`` with the flaws at ``site`` that change a result."""
        for flaw in self._flaws:
            spoil = _SPOIL.get(flaw.kind) if flaw.site == site else None
            if flaw.kind == "crowded" and len(x) < flaw.index:
                continue
            if spoil is not None:
                x = self._numerics.rounded(spoil(x, self._decoding(rows), self._numerics.stored))
        return x

    def _decoding(self, rows: RowMap) -> Decoding:
        found = []
        for i, (request, _, position) in enumerate(rows.tolist()):
            prompt = self._prompts[request]
            first = len(prompt.token_ids or ())
            if position >= first:
                found.append((i, position == first + int(prompt.sampling.get("max_tokens", 16)) - 2))
        return found


def _scale(x: Array, decoding: Decoding, stored: Stored) -> Array:
    return x * 1.03


def _element(x: Array, decoding: Decoding, stored: Stored) -> Array:
    x = x.copy()
    for row, _ in decoding:
        x[row, 7] += 5 * np.sqrt(np.mean(x[row] ** 2))
    return x


def _nan(x: Array, decoding: Decoding, stored: Stored) -> Array:
    x = x.copy()
    for row, last in decoding:
        if last:
            x[row, 3] = np.nan
    return x


def _coarse(x: Array, decoding: Decoding, stored: Stored) -> Array:
    mantissa, exponent = np.frexp(x)
    coarse: Array = np.ldexp(np.round(mantissa * 8) / 8, exponent)
    return coarse


def _floor(x: Array, decoding: Decoding, stored: Stored) -> Array:
    """Half a unit in the last place too low on average, like the floor of unrounded values."""
    lower: Array = x - _unit(x, stored) * (_draws(x) < 0.5)
    return lower


def _truncate(x: Array, decoding: Decoding, stored: Stored) -> Array:
    """Half a unit in the last place too small on average, like truncated unrounded values."""
    smaller: Array = x - np.sign(x) * _unit(x, stored) * (_draws(x) < 0.5)
    return smaller


def _slight(x: Array, decoding: Decoding, stored: Stored) -> Array:
    return 1.002 * _unrounded(x, stored)


def _short(x: Array, decoding: Decoding, stored: Stored) -> Array:
    return 0.997 * _unrounded(x, stored)


def _unrounded(x: Array, stored: Stored) -> Array:
    """What was rounded, made up: of a wrong factor after the rounding, rounding again would undo most."""
    before: Array = x + _unit(x, stored) * (_draws(x) - 0.5)
    return before


def _unit(x: Array, stored: Stored) -> Array:
    """A unit in the last place of each value."""
    return np.ldexp(0.5 * epsilon(stored), np.frexp(x)[1])


def _draws(x: Array) -> Array:
    """Reproducible uniform draws, one for each element."""
    return np.random.default_rng(x.shape[0]).random(x.shape)


_SPOIL: Mapping[str, Callable[[Array, Decoding, Stored], Array]] = {
    "scale": _scale, "element": _element, "nan": _nan, "coarse": _coarse, "floor": _floor,
    "truncate": _truncate, "slight": _slight, "short": _short, "crowded": _coarse,
}  # fmt: skip
