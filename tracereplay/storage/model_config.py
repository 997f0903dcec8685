"""What a checkpoint's config.json says of the model: layers, sizes, scales, rotary embeddings.

Why the file, and not what an engine made of it: each version of transformers names and fills in other keys.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import xxhash

__all__ = ["read_model_config"]

# Keys that change nothing that an engine computes, or that it states as settings.
_UNUSED = (
    "_*", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache", "*dropout*",
    "initializer_range", "tokenizer*", "id2label", "label2id", "task_specific_params",
)  # fmt: skip
_LONGEST = 1000  # characters of a key's value as JSON; of a longer one there is a digest


def read_model_config(model: Path) -> dict[str, Any]:
    """The keys that say what is computed, those that are null left out; empty where there is no such file."""
    try:
        said = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    used = {k: v for k, v in said.items() if v is not None and not any(fnmatchcase(k, glob) for glob in _UNUSED)}
    return {key: _short(value) for key, value in sorted(used.items())}


def _short(value: Any) -> Any:
    text = json.dumps(value, sort_keys=True)
    if len(text) <= _LONGEST:
        return value
    return f"{len(text)} characters of JSON, xxh3-128 {xxhash.xxh3_128_hexdigest(text.encode())}"
