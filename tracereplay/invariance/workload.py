"""What is generated where no prompts are given: token ids, the same for every model of a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracereplay.storage.model_config import read_model_config
from tracereplay.workload import Prompt

__all__ = ["default_prompts"]

# Of different lengths, so that chunks and blocks end at different places; the two longest fill a block of 128
# tokens, the unit of prefix caching on CPUs.
LENGTHS = (5, 17, 40, 66, 150, 300)
MAX_TOKENS = 8
SMALLEST = 128  # a vocabulary that every model has, where its configuration does not say
_SAMPLING: Mapping[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "logprobs": 0, "ignore_eos": True}


def default_prompts(model: Path, settings: Mapping[str, Any]) -> tuple[Prompt, ...]:
    """Six greedy requests of up to 300 tokens, fewer or shorter where the model holds less.

    Args:
        model: directory of the checkpoint.
        settings: engine arguments.
    """
    config = read_model_config(model)
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    lengths = [settings.get("max_model_len"), config.get("max_position_embeddings")]
    most = min((n for n in lengths if type(n) is int), default=1 << 30) - MAX_TOKENS
    vocabulary = config.get("vocab_size", (inner or {}).get("vocab_size"))
    ids = vocabulary if type(vocabulary) is int else SMALLEST
    kept = sorted({max(1, min(length, most)) for length in LENGTHS})
    return tuple(Prompt(_token_ids(n, seed, ids), None, _SAMPLING) for seed, n in enumerate(kept))


def _token_ids(length: int, seed: int, vocabulary: int) -> tuple[int, ...]:
    """Ids of a linear congruential generator, none of the first few, which stand for ends of text."""
    state, found = 12345 + seed, []
    for _ in range(length):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        found.append(state // 7 % max(1, vocabulary - 4) + min(4, vocabulary - 1))
    return tuple(min(i, vocabulary - 1) for i in found)
