"""What was generated: golden's tokens, the candidate's own choices, and the logprobs of golden's tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tracereplay.errors import DamagedTrace
from tracereplay.event import RowKey, Sampled
from tracereplay.trace import Trace
from tracereplay.verdict import TokenDivergence, TokenFinding

__all__ = ["Generation", "Sampling", "compare_tokens", "first_differences", "read_generation"]

Sampling: TypeAlias = Mapping[RowKey, Sampled]


@dataclass(frozen=True)
class Generation:
    """The sequences of a pass.

    Args:
        prompts: token ids of each request.
        greedy: for each request, whether its tokens are the most probable ones.
        tokens: (request, sequence) -> all token ids, prompt first.
        prompt_logprobs: (request, sequence) -> logprobs of the prompt's tokens, if asked for.
        texts: of each prompt, None if it was given as token ids.
        sampling: parameters of each request.
    """

    prompts: tuple[tuple[int, ...], ...]
    greedy: tuple[bool, ...]
    tokens: Mapping[tuple[int, int], tuple[int, ...]]
    prompt_logprobs: Mapping[tuple[int, int], Sequence[float | None]]
    texts: tuple[str | None, ...] = ()
    sampling: tuple[Mapping[str, Any], ...] = ()


def read_generation(trace: Trace, name: str) -> Generation:
    """The sequences of a pass, from its results or, if it was cut off, from its steps."""
    run = trace.run
    if run.requested is None:
        raise DamagedTrace(f"{trace.path} has no workload: it does not say what was generated.")
    prompts = tuple(prompt.token_ids or () for prompt in run.prompts)
    results = trace.results.get(name, {}).get("requests")
    try:
        found = _from_steps(trace, name) if results is None else _from_results(results)
    except (KeyError, TypeError) as error:
        raise DamagedTrace(f"{trace.path} has results of {name} that cannot be read: {error!r}.") from error
    # A prompt whose tokens are not known cannot tell where its sequence's tokens are.
    known = [request for request, prompt in enumerate(run.prompts) if prompt.token_ids]
    tokens = {key: (*prompts[key[0]], *ids) for key, ids in found.items() if key[0] in known}
    for request in known:
        for sequence in range(run.prompts[request].sequences):
            tokens.setdefault((request, sequence), prompts[request])
    logprobs = {_key(r): r["prompt_logprobs"] for r in results or () if r.get("prompt_logprobs")}
    texts, sampling = tuple(p.text for p in run.prompts), tuple(p.sampling for p in run.prompts)
    return Generation(prompts, tuple(p.greedy for p in run.prompts), tokens, logprobs, texts, sampling)


def _key(result: Mapping[str, Any]) -> tuple[int, int]:
    return result["request"], result["sequence"]


def _from_results(results: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], list[int]]:
    return {_key(result): list(result["token_ids"]) for result in results}


def _from_steps(trace: Trace, name: str) -> dict[tuple[int, int], list[int]]:
    """The tokens in order of their positions, as far as the steps go."""
    places: dict[RowKey, int] = {s.key: s.token for step in trace.records(name) for s in step.sampled}
    found: dict[tuple[int, int], list[int]] = {}
    for key in sorted(places):
        found.setdefault((key.request, key.sequence), []).append(places[key])
    return found


def first_differences(golden: Generation, candidate: Generation) -> dict[tuple[int, int], int]:
    """For each sequence whose tokens diverge, the position of the first token that differs."""
    found = {}
    for key, mine in golden.tokens.items():
        theirs = candidate.tokens.get(key, ())
        shared = min(len(mine), len(theirs))
        apart = next((i for i in range(shared) if mine[i] != theirs[i]), shared)
        if apart < shared or not theirs:
            found[key] = apart
    return found


def compare_tokens(
    golden: Sampling, candidate: Sampling, generation: Generation, other: Generation, *, forced: bool
) -> TokenFinding:
    """Tokens of greedy requests and logprobs of all requests.

    Args:
        golden, candidate: what was sampled at each place.
        generation, other: golden's sequences, and the candidate's.
        forced: whether the candidate went on with golden's tokens. If not, a sequence is compared up to the
            first token that differs.
    """
    parted = {} if forced else first_differences(generation, other)
    places = [key for key in golden if key in candidate and _before(key, parted, slack=1)]
    chosen = {request for request, greedy in enumerate(generation.greedy) if greedy}
    greedy = [key for key in places if key.request in chosen]
    apart = [key for key in greedy if golden[key].token != candidate[key].choice]
    logprobs = _logprobs(golden, candidate, [key for key in places if _before(key, parted, slack=0)])
    logprobs += _prompt_logprobs(generation, other, parted)
    return TokenFinding(
        compared=len(greedy),
        first_divergence=_divergence(golden, candidate, apart),
        logprob_max=max(logprobs, default=None),
        logprob_mean=float(np.mean(logprobs)) if logprobs else None,
        logprobs=len(logprobs),
        differing=len(apart),
        forced=forced,
    )


def _before(key: RowKey, parted: Mapping[tuple[int, int], int], *, slack: int) -> bool:
    limit = parted.get((key.request, key.sequence))
    return limit is None or key.position < limit + slack


def _divergence(golden: Sampling, candidate: Sampling, apart: Sequence[RowKey]) -> TokenDivergence | None:
    """The first in golden's order of sampling."""
    if not apart:
        return None
    key = apart[0]
    return TokenDivergence(key.request, key.position, golden[key].token, candidate[key].choice, key.sequence)


def _logprobs(golden: Sampling, candidate: Sampling, places: Sequence[RowKey]) -> list[float]:
    """Absolute differences, where both have a logprob of the same token."""
    pairs = ((golden[key], candidate[key]) for key in places)
    return [
        _apart(mine.logprob, theirs.logprob)
        for mine, theirs in pairs
        if mine.logprob is not None and theirs.logprob is not None and mine.token == theirs.token
    ]


def _prompt_logprobs(
    generation: Generation, other: Generation, parted: Mapping[tuple[int, int], int]
) -> list[float]:
    found = []
    for key, mine in generation.prompt_logprobs.items():
        theirs = other.prompt_logprobs.get(key, ())
        limit = parted.get(key, len(mine))
        for a, b in list(zip(mine, theirs, strict=False))[:limit]:
            if a is not None and b is not None:
                found.append(_apart(a, b))
    return found


def _apart(a: float, b: float) -> float:
    """The absolute difference; infinite where only one is a number."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    difference = abs(a - b)
    return math.inf if math.isnan(difference) else difference
