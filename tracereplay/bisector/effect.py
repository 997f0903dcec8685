"""How much of a difference remains after a change, and what share of it the change explains.

    explains = 1 - m(changed) / m(nothing changed),    m: mean of (candidate - golden)^2 of logprobs

over the golden tokens, all positions alike. It may be negative, and is not monotone: cancelling one of two
errors that oppose each other leaves more than cancelling neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracereplay.comparator import Policy
from tracereplay.comparator.tokens.generation import Generation
from tracereplay.comparator.tokens.rollout import log_ratio
from tracereplay.comparator.tokens.sampled import Sampling
from tracereplay.event import RowKey

__all__ = ["ENOUGH", "Criterion", "Effect", "effect_of", "explains"]

ENOUGH = 64  # positions; with fewer an interval says little
RESAMPLES = 2000
LEVEL = 95.0  # per cent
WITHIN = 0.95  # share that must be explained if the difference is within the policy from the start

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Effect:
    """Golden's tokens in one run of the candidate.

    Args:
        differences: logprobs, candidate over golden, in nats, in order of places; NaN where a side has none.
        wrong: greedy tokens for which the candidate would have chosen differently.
    """

    differences: tuple[float, ...]
    wrong: int

    @property
    def values(self) -> Floats:
        """The known differences."""
        every = np.array(self.differences)
        found: Floats = every[~np.isnan(every)]
        return found

    @property
    def square(self) -> float:
        """Mean squared difference."""
        return float(np.square(self.values).mean()) if len(self.values) else 0.0

    @property
    def largest(self) -> float:
        """Largest absolute difference."""
        return float(np.abs(self.values).max(initial=0.0))


def effect_of(
    golden: Sampling, run: Sampling, generation: Generation, own: Mapping[RowKey, float] | None = None
) -> Effect:
    """Compares a run's tokens with golden's.

    Args:
        golden, run: the samples at each position.
        generation: golden's sequences.
        own: the sampler's own differences on golden logits, by position, to subtract; the result is exactly
            golden's logprob if the run repeats its logprobs of the injected pass.
    """
    differences = []
    for key in sorted(golden):
        mine, theirs = golden[key].logprob, run[key].logprob if key in run else None
        apart = np.nan if mine is None or theirs is None else log_ratio(mine, theirs)
        differences.append(float(apart if own is None else _less(apart, own.get(key, 0.0))))
    greedy = [key for key in golden if generation.greedy[key.request] and key in run]
    wrong = sum(golden[key].token != run[key].choice for key in greedy)
    return Effect(tuple(differences), wrong)


def _less(apart: float, own: float) -> float:
    return 0.0 if apart == own else apart - own


def explains(before: Effect, after: Effect) -> tuple[float, tuple[float, float]]:
    """The share explained and its 95 % interval, by resampling the same positions on both sides.

    Positions of one sequence are not independent, so the interval is narrow rather than wide. NaN if there was
    no difference.
    """
    both = np.square(np.array([before.differences, after.differences]))
    both = both[:, ~np.isnan(both).any(axis=0)]
    base = both[0].sum()
    if not base:
        return float("nan"), (float("nan"), float("nan"))
    if not np.isfinite(both).all():
        return _share(both), (float("-inf"), 1.0)
    shares = np.concatenate([_resampled(both, count, part) for part, count in enumerate(_parts(both.shape[1]))])
    low, high = np.nanpercentile(shares, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return _share(both), (float(low), float(high))


def _parts(positions: int) -> list[int]:
    """Sizes of batches of resamples that take a few megabytes each."""
    size = max(1, (1 << 20) // positions)
    return [min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size)]


def _resampled(both: Floats, count: int, seed: int) -> Floats:
    """Shares of ``count`` resamples, each given by how often it has each position."""
    positions = both.shape[1]
    random = np.random.default_rng(seed)  # reproducible figures
    times = random.multinomial(positions, np.full(positions, 1 / positions), size=count)
    base, left = both @ times.T.astype(np.float64)
    found: Floats = np.full(count, np.nan)
    np.divide(left, base, out=found, where=base > 0)
    return 1 - found


def _share(both: Floats) -> float:
    return float(1 - both[1].sum() / both[0].sum()) if both[0].sum() else float("nan")


@dataclass(frozen=True, slots=True)
class Criterion:
    """When parity counts as restored.

    Args:
        policy: tokens and logprobs must be within it.
        before: the run with nothing changed. If it is already within the policy (a fault that no token shows),
            95 % of its difference must be explained instead.
    """

    policy: Policy
    before: Effect

    @property
    def visible(self) -> bool:
        """Whether the difference shows in tokens or logprobs."""
        return not self._within(self.before)

    def restores(self, effect: Effect) -> bool:
        """Whether this run is at parity."""
        if self.visible:
            return self._within(effect)
        return self.before.square > 0 and 1 - effect.square / self.before.square >= WITHIN

    def _within(self, effect: Effect) -> bool:
        return effect.wrong <= self.policy.differing_tokens and effect.largest <= self.policy.logprob_max_abs

    @property
    def words(self) -> str:
        """For the report."""
        if self.visible:
            tokens = f"at most {self.policy.differing_tokens}" if self.policy.differing_tokens else "no"
            return f"{tokens} greedy tokens differ and no logprob by more than {self.policy.logprob_max_abs:g}"
        return (
            f"{WITHIN:.0%} of the mean squared logprob difference is gone (tokens and logprobs were within the "
            "policy from the start)"
        )
