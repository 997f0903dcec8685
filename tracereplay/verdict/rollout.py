"""What a policy-gradient trainer would see between two engines, as frozen values.

    Rollout
    ├── abs_diff        Spread          |candidate - golden| of logprobs, over all tokens
    ├── by_position     PositionBin ... the same, by place in the generation
    ├── by_length       LengthRow ...   sequence-level log ratio, by length
    └── reported        Reported        which quantity each side reports as logprob, where it had to be found out

`comparator.tokens.rollout` computes them and gives the sources of the formulas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from tracereplay.jsondata import optional, plain

__all__ = ["LengthRow", "PositionBin", "Quantity", "Reported", "Rollout", "Spread"]

Quantity: TypeAlias = Literal["raw", "scaled", "filtered", "logit", "other"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution of magnitudes in nats."""

    mean: float
    max: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class PositionBin:
    """Absolute logprob differences of the tokens at generated places ``first`` to ``last`` (0 is the first)."""

    first: int
    last: int
    tokens: int
    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class LengthRow:
    """Sequences cut to ``length`` generated tokens; shorter ones are left out.

    Args:
        length: in tokens.
        sequences: how many are at least that long.
        log_ratio_mean, log_ratio_rms, log_ratio_max: of the sequence-level log ratio in nats; the maximum is of
            its magnitude.
        effective: effective sample size of the sequences' importance ratios, over their number; 0 to 1.
    """

    length: int
    sequences: int
    log_ratio_mean: float
    log_ratio_rms: float
    log_ratio_max: float
    effective: float


@dataclass(frozen=True, slots=True)
class Reported:
    """Which quantity each side reports as a token's logprob, found from its own logits.

    Args:
        golden, candidate: ``raw`` (log-softmax of the logits), ``scaled`` (after the temperature), ``filtered``
            (after temperature, top-k, top-p and min-p), ``logit``, or ``other`` where none of these fits.
        tokens: how many tokens were looked at.
        raw_max_diff: largest difference of raw logprobs that were computed anew from both sides' logits, in
            nats: what would be left if both reported the same.
    """

    golden: Quantity
    candidate: Quantity
    tokens: int
    raw_max_diff: float

    @property
    def differ(self) -> bool:
        """Whether the two report different quantities."""
        return self.golden != self.candidate


@dataclass(frozen=True, slots=True)
class Rollout:
    """Importance ratios of golden's tokens, candidate over golden, and what follows from them.

    Args:
        tokens: generated tokens of which both sides report a logprob.
        sequences: how many sequences they belong to.
        drawn: tokens that were drawn at random; for greedy ones k1 and k3 are no estimates of a divergence.
        abs_diff: of logprobs, per token.
        ratio_min, ratio_max: of importance ratios, per token.
        clip: half width of the interval around 1 outside of which a ratio counts as clipped.
        clipped: share of such tokens, 0 to 1.
        k1, k3: estimates of KL(golden || candidate) in nats per token.
        effective_tokens, effective_sequences: effective sample size over the number of samples, 0 to 1.
    """

    tokens: int
    sequences: int
    drawn: int
    abs_diff: Spread
    ratio_min: float
    ratio_max: float
    clip: float
    clipped: float
    k1: float
    k3: float
    effective_tokens: float
    effective_sequences: float
    by_position: tuple[PositionBin, ...] = ()
    by_length: tuple[LengthRow, ...] = ()
    reported: Reported | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it; numbers that it cannot are the strings ``nan``, ``inf`` and ``-inf``."""
        found: dict[str, Any] = plain(dataclasses.asdict(self))
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rollout:
        """The inverse of `as_dict`."""
        names = [f.name for f in dataclasses.fields(cls) if f.name not in _PARTS]
        simple: dict[str, Any] = {name: _value(name, data[name]) for name in names}
        return cls(
            **simple,
            abs_diff=_read(Spread, data["abs_diff"]),
            by_position=tuple(_read(PositionBin, row) for row in data["by_position"]),
            by_length=tuple(_read(LengthRow, row) for row in data["by_length"]),
            reported=optional(partial(_read, Reported), data.get("reported")),
        )


_COUNTS = {"tokens", "sequences", "drawn", "first", "last", "length", "golden", "candidate"}
_PARTS = {"abs_diff", "by_position", "by_length", "reported"}


def _read(into: Any, data: Mapping[str, Any]) -> Any:
    names = [f.name for f in dataclasses.fields(into)]
    return into(**{name: _value(name, data[name]) for name in names})


def _value(name: str, value: Any) -> Any:
    return value if name in _COUNTS else float(value)
