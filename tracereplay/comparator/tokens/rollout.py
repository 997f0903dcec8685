"""The rollout numbers: what PPO or GRPO would see if golden generated and the candidate trained.

With ``l = log p_candidate(token) - log p_golden(token)`` for each token that golden generated:

- importance ratio ``r = exp(l)``; a ratio outside ``[1 - 0.2, 1 + 0.2]`` is one that PPO's objective clips,
  depending on the sign of the advantage (Schulman et al., "Proximal Policy Optimization Algorithms", 2017,
  equation 7)
- ``k1 = -l`` and ``k3 = (r - 1) - l`` estimate KL(golden || candidate), k3 without negative values and with
  less variance (Schulman, "Approximating KL Divergence", 2020; k3 is GRPO's penalty: Shao et al., "DeepSeekMath",
  2024, equation 4)
- the sequence-level log ratio is the sum of ``l`` over a sequence, the log of the importance ratio of
  a whole answer
- effective sample size ``(sum r)^2 / sum r^2`` over the number of ratios (Kish, "Survey Sampling", 1965), for
  tokens and for sequences
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tracereplay.comparator.tokens.generation import Generation, first_differences, read_generation
from tracereplay.comparator.tokens.quantity import find_reported
from tracereplay.comparator.tokens.sampled import Places, SampledTokens, Sampling, shared_places
from tracereplay.errors import UsageError
from tracereplay.passes import RECORD, RERUN
from tracereplay.trace import Trace
from tracereplay.verdict.rollout import LengthRow, PositionBin, Rollout, Spread

__all__ = ["CLIP", "compare_rollouts", "log_ratio", "log_ratios", "rollout_numbers", "sampled_tokens"]

CLIP = 0.2  # the usual epsilon of PPO and GRPO
PASSES = (RERUN, RECORD)  # of a candidate: nothing is injected there, so errors add up as they would

Floats = npt.NDArray[np.float64]


def compare_rollouts(golden: Trace, candidate: Trace) -> Rollout:
    """The rollout numbers of two traces.

    Args:
        golden: a recording.
        candidate: a replay of it (its rerun is read), or another recording (compared up to where tokens part).

    Raises:
        UsageError: a trace lacks the pass, or no token has a logprob on both sides.
    """
    golden.require_recording()
    name = next((name for name in PASSES if name in candidate.passes), None)
    if name is None:
        raise UsageError(f"{candidate.path} has no pass in which it generated freely; it has {candidate.passes}.")
    mine, theirs = read_generation(golden, RECORD), read_generation(candidate, name)
    sampled = sampled_tokens(golden, RECORD), sampled_tokens(candidate, name)
    found = rollout_numbers(
        *sampled, mine, theirs, forced=name == RERUN, sides=((golden, RECORD), (candidate, name))
    )
    if found is None:
        raise UsageError(
            "No generated token has a logprob in both traces; record with logprobs (--logprobs 0 is enough)."
        )
    return found


def sampled_tokens(trace: Trace, name: str) -> Sampling:
    """What was sampled at each place of a pass; the last sampling of a place stands."""
    found = SampledTokens()
    for step in trace.records(name):
        found.add(step.sampled)
    return found


def rollout_numbers(
    golden: Sampling,
    candidate: Sampling,
    generation: Generation,
    other: Generation,
    *,
    forced: bool,
    sides: tuple[tuple[Trace, str], tuple[Trace, str]],
) -> Rollout | None:
    """The numbers of two passes, None where no token has a logprob on both sides.

    Args:
        golden, candidate: what was sampled at each place.
        generation, other: golden's sequences, and the candidate's.
        forced: whether the candidate continued with golden's tokens; if not, a sequence is read up to the first
            token that differs.
        sides: trace and pass of each, to find out what they report where that matters.
    """
    parted = {} if forced else first_differences(generation, other)
    places = _ordered(golden, candidate, parted)
    if not len(places.keys):
        return None
    every = log_ratios(*places.logprobs)
    ratios = np.split(every, np.flatnonzero((np.diff(places.keys[:, :2], axis=0) != 0).any(axis=1)) + 1)
    greedy = np.flatnonzero(generation.greedy)  # a trace may have tokens of requests that it does not describe
    drawn = int((~np.isin(places.keys[:, 0], greedy)).sum())
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.exp(every)
        return Rollout(
            tokens=len(every),
            sequences=len(ratios),
            drawn=drawn,
            abs_diff=_spread(np.abs(every)),
            ratio_min=float(ratio.min()),
            ratio_max=float(ratio.max()),
            clip=CLIP,
            clipped=float((np.abs(ratio - 1) > CLIP).mean()),
            k1=float(-every.mean()),
            k3=float(np.mean(ratio - 1 - every)),
            effective_tokens=effective_share(every),
            effective_sequences=effective_share(np.array([r.sum() for r in ratios])),
            by_position=tuple(_by_position(ratios)),
            by_length=tuple(_by_length(ratios)),
            reported=find_reported(*sides, golden, candidate, (k for k in golden if _kept(k, parted)))
            if np.any(every != 0)
            else None,
        )


def _kept(key: Any, parted: Mapping[tuple[int, int], int]) -> bool:
    return bool(key.position < parted.get((key.request, key.sequence), 1 << 60))


def _ordered(golden: Sampling, candidate: Sampling, parted: Mapping[tuple[int, int], int]) -> Places:
    """Where both have a logprob of one and the same token, by sequence, in order of their positions."""
    places = shared_places(golden, candidate)
    places = places.where(places.before(parted) & places.reported & (places.tokens[0] == places.tokens[1]))
    order = np.lexsort(places.keys.T[::-1])
    return places.where(order)


def log_ratios(golden: Floats, candidate: Floats) -> Floats:
    """Candidate over golden in nats; zero where both are the same, infinities and NaN included.

    A NaN on one side only is no probability at all: it counts as infinitely far.
    """
    with np.errstate(invalid="ignore"):
        apart = candidate - golden
    apart[np.isnan(apart)] = -np.inf
    apart[(golden == candidate) | (np.isnan(golden) & np.isnan(candidate))] = 0.0
    return apart


def log_ratio(golden: float, candidate: float) -> float:
    """`log_ratios` of one token."""
    return float(log_ratios(np.array([golden]), np.array([candidate]))[0])


def _spread(sizes: Floats) -> Spread:
    with np.errstate(invalid="ignore"):
        p50, p90, p99 = (float(np.percentile(sizes, q, method="higher")) for q in (50, 90, 99))
    return Spread(float(sizes.mean()), float(sizes.max()), p50, p90, p99)


def effective_share(log_ratios: Floats) -> float:
    """Kish's effective sample size of importance ratios given as logarithms, over their number; 0 to 1."""
    top = float(log_ratios.max())
    if not math.isfinite(top):
        return math.nan
    ratios = np.exp(log_ratios - top)  # the largest is 1: a quotient of sums is not changed by a common factor
    return float(ratios.sum() ** 2 / np.square(ratios).sum() / len(ratios))


def _doubling(longest: int) -> list[int]:
    """1, 2, 4 ... and the longest itself."""
    lengths = [1 << i for i in range(longest.bit_length()) if 1 << i < longest]
    return [*lengths, longest]


def _by_position(ratios: Sequence[Floats]) -> list[PositionBin]:
    """Places in bins that double: 0, 1, 2-3, 4-7 ..."""
    rows, first = [], 0
    for end in _doubling(max(map(len, ratios))):
        found = np.abs(np.concatenate([r[first:end] for r in ratios]))
        rows.append(PositionBin(first, end - 1, len(found), float(found.mean()), float(found.max())))
        first = end
    return rows


def _by_length(ratios: Sequence[Floats]) -> list[LengthRow]:
    rows = []
    for length in _doubling(max(map(len, ratios))):
        sums = np.array([r[:length].sum() for r in ratios if len(r) >= length])
        spread = float(sums.mean()), float(np.sqrt(np.square(sums).mean())), float(np.abs(sums).max())
        rows.append(LengthRow(length, len(sums), *spread, effective_share(sums)))
    return rows
