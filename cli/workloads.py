"""What options ask to be generated: prompts of a file, and sampling parameters where these set none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracereplay.gate.adapters import ADAPTERS
from tracereplay.sampling import LORA
from tracereplay.storage.adapter import adapter_settings, read_adapter
from tracereplay.workload import Workload, read_prompts

__all__ = ["sampling_of", "workload_of_prompts"]


def sampling_of(max_tokens: int, temperature: float, seed: int | None, logprobs: int, n: int) -> dict[str, Any]:
    """The sampling parameters that these options are."""
    sampling: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "logprobs": logprobs}
    return sampling | {k: v for k, v in (("seed", seed), ("n", n)) if v not in (None, 1)}


def workload_of_prompts(
    model: Path, prompts: Path, sampling: Mapping[str, Any], given: Mapping[str, Any]
) -> Workload:
    """What to generate; adapters are named by prompts, and engines make room for those that are."""
    settings = dict(given)
    directories = settings.pop(ADAPTERS, {})
    adapters = {name: read_adapter(name, Path(path)) for name, path in directories.items()}
    asked = read_prompts(prompts, sampling, {name: adapter.as_dict() for name, adapter in adapters.items()})
    ranks = [adapters[prompt.sampling[LORA]["name"]].rank for prompt in asked if LORA in prompt.sampling]
    return Workload(str(model), asked, {**settings, **adapter_settings(ranks, settings)})
