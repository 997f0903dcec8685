"""The toy's checkpoints: a directory in Hugging Face's layout, with a configuration and a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tracereplay.engines.toy.numerics import Array
from tracereplay.engines.toy.weights import SHAPES, drawn
from tracereplay.errors import WorkloadError

__all__ = ["read_tensors", "write_checkpoint"]

_CONFIG, _TENSORS = "config.json", "model.safetensors"
_KIND = "toy"


def write_checkpoint(directory: Path, name: str = "toy") -> None:
    """Writes a checkpoint whose weights are derived from ``name``."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"model_type": _KIND, "name": name}
    (directory / _CONFIG).write_text(json.dumps(config) + "\n", encoding="utf-8")
    save_file(drawn(name), directory / _TENSORS)


def read_tensors(directory: Path) -> Mapping[str, Array]:
    """A checkpoint's tensors; without a safetensors file, those derived from its name.

    Raises:
        WorkloadError: it is not a checkpoint of the toy.
    """
    name = _name(directory)
    if not (directory / _TENSORS).exists():
        return drawn(name)
    try:
        tensors = load_file(directory / _TENSORS)
    except (OSError, SafetensorError) as error:
        raise WorkloadError(f"{directory / _TENSORS} cannot be read as safetensors: {error}.") from error
    found = {key: tensor.shape for key, tensor in tensors.items()}
    if found != SHAPES:
        wrong = next(key for key in sorted({*found, *SHAPES}) if found.get(key) != SHAPES.get(key))
        raise WorkloadError(
            f"{directory / _TENSORS} does not contain the toy engine's weights: {wrong} has the shape "
            f"{found.get(wrong)}, and {SHAPES.get(wrong)} was expected."
        )
    return tensors


def _name(directory: Path) -> str:
    try:
        config: Any = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkloadError(f"{directory / _CONFIG} cannot be read: {error}.") from error
    if not isinstance(config, dict) or config.get("model_type") != _KIND:
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise WorkloadError(
            f"{directory} is not a model of the toy engine (its model_type is {kind!r}). "
            "'tracereplay engine add NAME --family toy' writes one and prints its path."
        )
    return str(config.get("name"))
