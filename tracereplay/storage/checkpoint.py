"""The checkpoint's identity: one digest over all its tensors.

Engines repack and drop the tensors they load, so only the files say which weights a generation used.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import xxhash

from tracereplay.errors import WorkloadError

__all__ = ["check_model", "weights_digest"]

MAX_HEADER = 100 << 20  # safetensors' own limit
_BLOCK = 4 << 20


def check_model(model: Path) -> None:
    """Raises WorkloadError unless ``model`` is a directory with a config.json."""
    if not model.is_dir():
        raise WorkloadError(f"There is no model directory {model}; give the path of a local checkpoint.")
    if not (model / "config.json").is_file():
        raise WorkloadError(f"{model} has no config.json; give a checkpoint in Hugging Face's layout.")


def weights_digest(model: Path) -> str | None:
    """xxh3-128 over names, dtypes, shapes and bytes of all tensors, in order of their names.

    How the tensors are spread over files does not matter. None if there are no safetensors files (dummy
    weights, or another format).

    Raises:
        WorkloadError: a file is not a safetensors file.
    """
    tensors = []
    for path in sorted(model.glob("*.safetensors")):
        tensors += [(name, path, base, entry) for name, base, entry in _entries(path)]
    if not tensors:
        return None
    state = xxhash.xxh3_128()
    for name, path, base, entry in sorted(tensors, key=lambda t: t[0]):
        state.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        start, end = entry["data_offsets"]
        with path.open("rb") as file:
            file.seek(base + start)
            left = end - start
            while left > 0 and (block := file.read(min(left, _BLOCK))):
                state.update(block)
                left -= len(block)
    return state.hexdigest()


def _entries(path: Path) -> list[tuple[str, int, dict[str, Any]]]:
    with path.open("rb") as file:
        head = file.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else MAX_HEADER + 1
        if size > MAX_HEADER:
            raise WorkloadError(f"{path} is not a safetensors file: its header would be {size} bytes long.")
        try:
            header = json.loads(file.read(size))
        except ValueError as error:
            raise WorkloadError(f"{path} is not a safetensors file: its header is not JSON.") from error
    return [(name, 8 + size, entry) for name, entry in header.items() if name != "__metadata__"]
