"""Which quantity a sampler reports as a token's logprob, found by computing each from the recorded logits.

Some engines report what they sample from: after temperature, top-k, top-p and min-p. Others report raw logprobs
unless asked otherwise. Two engines may so agree in every logit and differ in every logprob,
which is not a numeric error. Settings alone do not tell (a trainer or a server may report what it likes), so the
quantity is determined from the numbers themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tracereplay.comparator.numbers.align import sites_of
from tracereplay.comparator.numbers.dtypes import widen
from tracereplay.comparator.tokens.sampled import Sampling
from tracereplay.event import Call, RowKey, Step
from tracereplay.trace import Trace
from tracereplay.verdict.rollout import Quantity, Reported

__all__ = ["find_reported", "quantities"]

# Nats. Logprobs are sums of a few float32 operations on one row; the quantities differ by far more than this.
SAME = 2e-3
# In order of preference, where a request cannot tell them apart (greedy, or temperature 1 without a filter).
ORDER: tuple[Quantity, ...] = ("raw", "scaled", "filtered", "logit")
_FILTERS = ("top_p", "top_k", "min_p")
# With these the logits are changed before anything else, by the history of the sequence.
_PENALTIES = (
    "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "min_tokens", "bad_words",
)  # fmt: skip

Floats = npt.NDArray[np.float64]
Side = tuple[Trace, str]


def find_reported(
    golden: Side, candidate: Side, sampled: Sampling, other: Sampling, places: Iterable[RowKey]
) -> Reported | None:
    """What each side reports, or None if no request can tell one quantity from another.

    Args:
        golden, candidate: trace and pass.
        sampled, other: what was sampled at each place.
        places: of the tokens to look at.
    """
    parameters = [p.sampling for p in golden[0].run.prompts]
    telling = {request for request, sampling in enumerate(parameters) if _tells(sampling)}
    wanted = {key for key in places if key.request in telling and key in other}
    if not wanted:
        return None
    mine = _quantities_of(golden, sampled, wanted, parameters)
    theirs = _quantities_of(candidate, other, wanted, parameters)
    both = [key for key in mine if key in theirs]
    if not both:
        return None
    raw = ORDER.index("raw")
    return Reported(
        _fitting([mine[key] for key in both], [sampled[key].logprob for key in both]),
        _fitting([theirs[key] for key in both], [other[key].logprob for key in both]),
        len(both),
        max(abs(float(mine[key][raw] - theirs[key][raw])) for key in both),
    )


def _tells(sampling: Mapping[str, Any]) -> bool:
    """Whether the quantities differ for a request with these parameters, and can be computed."""
    if float(sampling.get("temperature", 1.0)) == 0.0 or any(sampling.get(name) for name in _PENALTIES):
        return False
    return float(sampling.get("temperature", 1.0)) != 1.0 or any(name in sampling for name in _FILTERS)


def _fitting(computed: Sequence[Floats], reported: Sequence[float | None]) -> Quantity:
    """The first quantity that fits every reported value."""
    values = np.array([np.nan if value is None else value for value in reported])
    table = np.array(computed)
    with np.errstate(invalid="ignore"):
        fits = (np.abs(table - values[:, None]) <= SAME) | (table == values[:, None])
    return next((name for name, all_fit in zip(ORDER, fits.all(axis=0), strict=True) if all_fit), "other")


def _quantities_of(
    side: Side, sampled: Sampling, wanted: set[RowKey], parameters: Sequence[Mapping[str, Any]]
) -> dict[RowKey, Floats]:
    """The quantities of each wanted token, ``[4]`` in ``ORDER``; read step by step, since logits are wide."""
    trace, name = side
    found: dict[RowKey, Floats] = {}
    samplers = {site.name for site in sites_of(trace, name).values() if site.role == "sampler"}
    for record in trace.records(name):
        keys = [s.key for s in record.sampled if s.key in wanted]
        rows = _logits(trace.segment(name).step(record.place), samplers) if keys else {}
        for key in keys:
            logits = rows.get((key.request, key.sequence, key.position - 1))
            if logits is not None:
                found[key] = quantities(logits, sampled[key].token, parameters[key.request])
    return found


def _logits(step: Step, samplers: Collection[str]) -> dict[tuple[int, int, int], Floats]:
    """What arrived at the sampler, by row, as float64."""
    found: dict[tuple[int, int, int], Floats] = {}
    for call in (c for c in step.calls if c.site in samplers and c.inputs):
        table = _table(call)
        found.update((tuple(row), x) for row, x in zip(call.rows_in.tolist(), table, strict=False))
    return found


def _table(call: Call) -> Floats:
    value = call.inputs[0]
    raw = value.numpy()
    return widen(raw, value.dtype).astype(np.float64)


def quantities(logits: Floats, token: int, sampling: Mapping[str, Any]) -> Floats:
    """Raw, scaled and filtered logprob and logit of ``token``, ``float64 [4]``.

    Args:
        logits: of one row, ``[vocabulary]``.
        sampling: the request's parameters. Filters are applied in this order: top-k, then top-p on what is left
            (the smallest set whose probability reaches it), then min-p relative to the most probable token.
    """
    scaled = logits / (float(sampling.get("temperature", 1.0)) or 1.0)
    filtered = _filtered(scaled, sampling)
    return np.array([_logprob(logits, token), _logprob(scaled, token), _logprob(filtered, token), logits[token]])


def _logprob(logits: Floats, token: int) -> float:
    top = logits.max()
    return float(logits[token] - top - np.log(np.exp(logits - top).sum()))


def _filtered(logits: Floats, sampling: Mapping[str, Any]) -> Floats:
    kept = np.ones(len(logits), bool)
    top_k, top_p, min_p = (sampling.get(name) for name in ("top_k", "top_p", "min_p"))
    order = np.argsort(-logits, kind="stable")
    if top_k and 0 < int(top_k) < len(logits):
        kept &= logits >= logits[order[int(top_k) - 1]]
    if top_p is not None and float(top_p) < 1:
        probabilities = _softmax(np.where(kept, logits, -np.inf))[order]
        before = np.cumsum(probabilities) - probabilities
        kept[order[before >= float(top_p)]] = False
        kept[order[0]] = True
    if min_p:
        kept &= logits >= logits[order[0]] + np.log(float(min_p))
    found: Floats = np.where(kept, logits, -np.inf)
    return found


def _softmax(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max())
    found: Floats = exponentials / exponentials.sum()
    return found
