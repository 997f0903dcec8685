"""Limits replayed requests to the length that was recorded, whatever they asked for."""

from __future__ import annotations

from dataclasses import replace

from tracereplay.comparator.tokens.generation import read_generation
from tracereplay.passes import RECORD
from tracereplay.trace import Trace
from tracereplay.workload import Prompt, Workload

__all__ = ["as_long_as"]


def as_long_as(golden: Trace, workload: Workload) -> Workload:
    """The workload with each request limited to the tokens that golden has of it.

    A client that disconnects aborts its request, and a recording that is cut off ends them all: beyond that
    position there is no golden token to force and nothing to compare. Where the engine reported how its requests
    ended, they ended by themselves, and a candidate that generates more tokens is to be noticed.
    """
    if RECORD in golden.results:
        return workload
    generation = read_generation(golden, RECORD)
    longest: dict[int, int] = {}
    for (request, _), tokens in generation.tokens.items():
        made = len(tokens) - len(generation.prompts[request])
        longest[request] = max(made, longest.get(request, 0))
    prompts = (_limited(p, longest[i]) if i in longest else p for i, p in enumerate(workload.prompts))
    return replace(workload, prompts=tuple(prompts))


def _limited(prompt: Prompt, tokens: int) -> Prompt:
    """At least one token, since engines refuse to generate none."""
    asked = prompt.sampling.get("max_tokens")
    limit = max(1, tokens if asked is None else min(tokens, int(asked)))
    # Stop texts are found by a server's front end, while its engine may already have computed the next token: they
    # are in the recorded length.
    sampling = {k: v for k, v in prompt.sampling.items() if k != "stop"} | {"max_tokens": limit}
    if sampling.get("min_tokens"):
        sampling["min_tokens"] = min(int(sampling["min_tokens"]), limit)
    return replace(prompt, sampling=sampling)
