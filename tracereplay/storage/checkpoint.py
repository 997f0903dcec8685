"""The checkpoint's identity: a digest of each tensor, and one over all.

Engines repack and drop the tensors they load, so only the files say which weights a generation used.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from tracereplay.errors import OtherWeights, WorkloadError

__all__ = ["Checkpoint", "check_model", "check_weights", "entries", "model_files", "read_checkpoint"]

MAX_HEADER = 100 << 20  # safetensors' own limit
_BLOCK = 4 << 20
# What decides beside the tensors how a model computes and how text becomes tokens: configuration, tokenizer,
# defaults of generation, and code that comes with it.
_BESIDE = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
_INDEX = ".safetensors.index.json"  # says only which file holds which tensor


def check_model(model: Path) -> None:
    """Raises WorkloadError unless ``model`` is a directory with a config.json."""
    if not model.is_dir():
        raise WorkloadError(f"There is no model directory {model}; give the path of a local checkpoint.")
    if not (model / "config.json").is_file():
        raise WorkloadError(f"{model} has no config.json; give a checkpoint in Hugging Face's layout.")


def check_weights(golden: str | None, model: Path, found: str | None) -> None:
    """Raises OtherWeights if the digest ``found`` at ``model`` differs from golden's; None is unknown."""
    if None not in (golden, found) and golden != found:
        raise OtherWeights(
            f"The weights of the model at {model} are not those that the golden trace was recorded with (digest "
            f"{found}, golden {golden}), so every operator would differ; no engine was started. Give golden's "
            "checkpoint with --model. If these weights are intended, record a golden trace with them, or measure "
            "how much they change with replay --other-weights.",
            str(golden), str(found),
        )  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's files hold.

    Args:
        tensors: of each tensor its dtype (as safetensors names it), shape and the xxh3-128 of its bytes.
    """

    tensors: Mapping[str, tuple[str, tuple[int, ...], str]]

    @property
    def digest(self) -> str | None:
        """xxh3-128 over all of it, in order of the names; how tensors are spread over files does not matter.

        None if there are no safetensors files (dummy weights, or another format).
        """
        if not self.tensors:
            return None
        state = xxhash.xxh3_128()
        for name, (dtype, shape, digest) in sorted(self.tensors.items()):
            state.update(json.dumps([name, dtype, shape, digest]).encode())
        return state.hexdigest()


def read_checkpoint(model: Path) -> Checkpoint:
    """Reads all tensors of ``model``.

    Raises:
        WorkloadError: a file is not a safetensors file.
    """
    tensors = {}
    for path in sorted(model.glob("*.safetensors")):
        for name, base, entry in entries(path):
            start, end = entry["data_offsets"]
            tensors[name] = (entry["dtype"], tuple(entry["shape"]), _digest(path, base + start, end - start))
    return Checkpoint(tensors)


def model_files(model: Path) -> dict[str, str]:
    """The xxh3-128 of each file beside a model's tensors that decides what it computes, by name."""
    found = {path for glob in _BESIDE for path in model.glob(glob) if path.is_file()}
    named = sorted((path.name, path) for path in found if not path.name.endswith(_INDEX))
    return {name: _digest(path, 0, path.stat().st_size) for name, path in named}


def _digest(path: Path, start: int, left: int) -> str:
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        file.seek(start)
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            state.update(block)
            left -= len(block)
    return state.hexdigest()


def entries(path: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """Name, start of the data (bytes) and header entry of each tensor of a safetensors file."""
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
