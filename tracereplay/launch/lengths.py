"""How long requests may be: as long as the model can hold, and in a replay as long as they were recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracereplay.comparator.tokens.generation import read_generation
from tracereplay.errors import WorkloadError
from tracereplay.passes import RECORD
from tracereplay.storage.model_config import read_model_config
from tracereplay.trace import Trace
from tracereplay.workload import Prompt, Workload

__all__ = ["as_long_as", "check_lengths"]


def check_lengths(workload: Workload, settings: Mapping[str, Any]) -> None:
    """Raises WorkloadError for a prompt that leaves no room for a token, as far as that is known by now.

    Args:
        workload: what is to be generated; prompts of text are checked when the engine has tokenized them.
        settings: all engine arguments.
    """
    most = settings.get("max_model_len")
    said = f"max_model_len is {most}; give a shorter prompt or a larger max_model_len (--set max_model_len=N)."
    if type(most) is not int:
        config = read_model_config(Path(workload.model))
        most = config.get("max_position_embeddings")
        said = f"the model was made for {most} positions (max_position_embeddings); give a shorter prompt."
        if type(most) is not int or _scaled(config):
            return
    for number, prompt in enumerate(workload.prompts):
        if prompt.token_ids is not None and len(prompt.token_ids) >= most:
            raise WorkloadError(f"Prompt {number} has {len(prompt.token_ids)} tokens, and {said}")


def _scaled(config: Mapping[str, Any]) -> bool:
    """Whether positions beyond max_position_embeddings are reached by scaling rotary embeddings."""
    parts = [config.get("rope_scaling"), config.get("rope_parameters")]
    return any(isinstance(part, Mapping) and part.keys() - {"rope_theta", "rope_type"} for part in parts)


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
