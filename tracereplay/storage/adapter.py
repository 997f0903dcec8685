"""Adapters (LoRA): which one a request was served with, known by the digest of what it holds.

In traces it is the sampling parameter ``lora``: an object with ``name``, ``path``, ``digest`` and ``rank``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from tracereplay.errors import WorkloadError
from tracereplay.storage.checkpoint import read_checkpoint

__all__ = ["Adapter", "adapter_settings", "read_adapter"]

_CONFIG = "adapter_config.json"
# What its configuration says of how it computes; the rest says who made it.
_COMPUTES = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "modules_to_save", "bias")
_USUAL_RANK = 16  # engines make room for adapters of this rank unless they are told otherwise
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in a directory.

    Args:
        name: as requests name it.
        path: the directory, with adapter_config.json and safetensors files.
        digest: xxh3-128 of its tensors and of what its configuration says of how it computes.
        rank: of its matrices.
    """

    name: str
    path: str
    digest: str
    rank: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_adapter(name: str, directory: Path) -> Adapter:
    """Reads an adapter's files.

    Raises:
        WorkloadError: the directory holds none.
    """
    try:
        config = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
        rank = int(config["r"])
    except OSError as error:
        raise WorkloadError(
            f"There is no adapter {name!r} at {directory}: {_CONFIG}: {error.strerror}."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise WorkloadError(f"{directory / _CONFIG} does not describe a LoRA adapter of a rank r.") from error
    tensors = read_checkpoint(directory).digest
    if tensors is None:
        raise WorkloadError(f"The adapter {name!r} at {directory} has no safetensors files.")
    computes = {key: config.get(key) for key in _COMPUTES}
    if isinstance(computes["target_modules"], list):
        computes["target_modules"] = sorted(map(str, computes["target_modules"]))
    said = json.dumps([tensors, computes], sort_keys=True)
    return Adapter(name, str(directory.resolve()), xxhash.xxh3_128_hexdigest(said.encode()), rank)


def adapter_settings(ranks: Iterable[int], given: Mapping[str, Any]) -> dict[str, Any]:
    """The engine arguments that adapters of these ranks need and that are not given."""
    needed: dict[str, Any] = {}
    if largest := max(ranks, default=0):
        needed["enable_lora"] = True
        if largest > _USUAL_RANK:
            needed["max_lora_rank"] = next((rank for rank in _RANKS if rank >= largest), largest)
    return {name: value for name, value in needed.items() if name not in given}
