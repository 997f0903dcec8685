"""The toy's sampler: its choices, the tokens to continue with, and their logprobs."""

from __future__ import annotations

import numpy as np

from tracereplay.engines.toy.flaws import Planted
from tracereplay.engines.toy.golden import Forced
from tracereplay.engines.toy.numerics import Array
from tracereplay.engines.toy.recorder import Recorder
from tracereplay.engines.toy.schedule import Batch, Sample
from tracereplay.event import RowMap, Sampled

__all__ = ["Sampler"]


class Sampler:
    """Chooses from logits.

    Args:
        processed: report logprobs of logits divided by the temperature.
    """

    def __init__(self, planted: Planted, processed: bool) -> None:
        self._planted, self._processed = planted, processed

    def sample(
        self,
        tap: Recorder,
        logits: Array,
        rows: RowMap,
        batch: Batch,
        last: list[tuple[int, Sample]],
        forced: Forced | None,
    ) -> list[Sampled]:
        """The next token of each sample in ``last``: the forced one, or else the chosen one."""
        logits = tap.feed("sampler", 0, self._planted.edge("sampler", 0, logits), rows)
        pick = [_without_best(x) for x in logits] if self._planted.sits("second", "sampler") else list(logits)
        choices = np.array([_choose(x, seq) for x, (_, seq) in zip(pick, last, strict=True)], np.int64)
        tap.observe("sampler", 0, choices, rows, replace=False)
        tokens = [_token(seq, int(c), forced) for (_, seq), c in zip(last, choices, strict=True)]
        logprobs = np.array([self._logprob(x, t, s) for x, t, (_, s) in zip(logits, tokens, last, strict=True)])
        logprobs = self._planted.flawed("sampler", logprobs, batch.rows)
        tap.observe("sampler", 1, logprobs, rows, replace=False)
        found = zip(last, tokens, choices.tolist(), logprobs.tolist(), strict=True)
        return [seq.advance(token, choice, logprob) for (_, seq), token, choice, logprob in found]

    def _logprob(self, logits: Array, token: int, seq: Sample) -> float:
        if self._processed:
            logits = logits / (float(seq.sampling.get("temperature", 1.0)) or 1.0)
        shifted = logits - logits.max()
        return float(np.float32(shifted[token] - np.log(np.exp(shifted).sum())))


def _without_best(logits: Array) -> Array:
    found: Array = np.where(logits == logits.max(), -np.inf, logits)
    return found


def _choose(logits: Array, seq: Sample) -> int:
    """The most probable token, or one drawn with a seed derived from its place."""
    temperature = float(seq.sampling.get("temperature", 1.0))
    if temperature:
        seed = [int(seq.sampling.get("seed", 0)), *seq.key, len(seq.tokens)]
        logits = logits / temperature + np.random.default_rng(seed).gumbel(size=logits.shape)
    return int(np.argmax(logits))


def _token(seq: Sample, choice: int, forced: Forced | None) -> int:
    return choice if forced is None else forced[seq.key][len(seq.tokens) - seq.prompt]
