"""What was generated: golden's tokens, the candidate's own choices, and the logprobs of golden's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tracereplay.comparator.tokens.sampled import Places, Sampling, shared_places
from tracereplay.errors import DamagedTrace
from tracereplay.event import RowKey
from tracereplay.trace import Trace
from tracereplay.verdict import TokenDivergence, TokenFinding

__all__ = ["Generation", "compare_tokens", "first_differences", "read_generation"]

Floats = npt.NDArray[np.float64]


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
    places = shared_places(golden, candidate)
    chosen = [request for request, greedy in enumerate(generation.greedy) if greedy]
    greedy = places.where(places.before(parted, slack=1) & np.isin(places.keys[:, 0], chosen))
    apart = np.flatnonzero(greedy.tokens[0] != greedy.choices[1])
    same = places.before(parted) & places.reported & (places.tokens[0] == places.tokens[1])
    logprobs = np.concatenate([_apart(*places.where(same).logprobs), _prompt_logprobs(generation, other, parted)])
    return TokenFinding(
        compared=len(greedy.keys),
        first_divergence=None if not len(apart) else _divergence(greedy, int(apart[0])),
        logprob_max=float(logprobs.max()) if len(logprobs) else None,
        logprob_mean=float(np.mean(logprobs)) if len(logprobs) else None,
        logprobs=len(logprobs),
        differing=len(apart),
        forced=forced,
    )


def _divergence(places: Places, at: int) -> TokenDivergence:
    request, sequence, position = places.keys[at].tolist()
    return TokenDivergence(request, position, int(places.tokens[0][at]), int(places.choices[1][at]), sequence)


def _prompt_logprobs(generation: Generation, other: Generation, parted: Mapping[tuple[int, int], int]) -> Floats:
    """Absolute differences of the prompts' logprobs, where both have one."""
    found = [np.empty(0)]
    for key, mine in generation.prompt_logprobs.items():
        theirs = other.prompt_logprobs.get(key, ())
        limit = parted.get(key, len(mine))
        pairs = [
            (a, b) for a, b in list(zip(mine, theirs, strict=False))[:limit] if a is not None and b is not None
        ]
        found.append(_apart(*np.array(pairs, np.float64).reshape(-1, 2).T))
    return np.concatenate(found)


def _apart(a: Floats, b: Floats) -> Floats:
    """The absolute differences; infinite where only one is a number."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(a - b)
    difference[np.isnan(difference)] = np.inf
    difference[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    return difference
