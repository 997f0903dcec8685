"""Whether an engine computes in the dtype that a checkpoint was saved in, if nobody asked for another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["other_dtype"]

_KEYS = ("dtype", "torch_dtype")  # transformers 5 writes the first, and releases before it read only the second


def other_dtype(model: Path, settings: Mapping[str, Any], info: Mapping[str, Any]) -> str | None:
    """A sentence if the engine took another dtype than the checkpoint's by itself; None if it did not.

    Args:
        model: the checkpoint's directory.
        settings: engine arguments that were given.
        info: what the engine says of itself.
    """
    if settings.get("dtype", "auto") != "auto":
        return None
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    key = next((k for k in _KEYS if isinstance(config, dict) and isinstance(config.get(k), str)), None)
    taken = (info.get("settings") or {}).get("dtype")
    if key is None or taken is None or config[key] == taken:
        return None
    return (
        f"The engine computes in {taken}, and the checkpoint was saved in {config[key]} ({key!r} in its "
        f"config.json); give --set dtype={config[key]} if that is not meant."
    )
