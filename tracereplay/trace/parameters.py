"""The weights of a recorded operator: read from the checkpoint by name, verified by digest.

A trace names weights but does not store them unless requested. Engines fuse what a checkpoint has apart
(q, k and v; gate and up), pad vocabularies, and may compute in another dtype than the checkpoint has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from tracereplay.dtypes import DTYPES, nbytes, numpy_dtype
from tracereplay.errors import MissingWeights
from tracereplay.event import Parameter, Value
from tracereplay.storage.checkpoint import entries
from tracereplay.trace.chunk import DTYPE_NAMES
from tracereplay.trace.open import Trace

__all__ = ["Parameters"]

MOST_PADDING = 4096  # rows that an engine may have added to a vocabulary


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in a file of the checkpoint; ``start`` counts bytes from the file's beginning."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(nbytes(self.dtype, self.shape))


class Parameters:
    """Weights of a trace's operators.

    Args:
        trace: a recording.
        model: the checkpoint's directory (`gate.weights_directory`). Not needed where the weights are in the trace
            (``record --with-weights``).
    """

    def __init__(self, trace: Trace, model: Path | None = None) -> None:
        self._trace = trace
        self._model = model

    def load(self, parameter: Parameter) -> npt.NDArray[Any]:
        """A parameter as the operator held it, all tensor-parallel ranks together.

        Returns:
            Its parts joined along the first dimension, in its dtype (rounded to nearest even where the checkpoint
            has a wider one). Rows that an engine adds to a vocabulary are zero.

        Raises:
            MissingWeights: it is not known from which tensors it was loaded; there are no such tensors, or they
                hold other bytes than those that the golden generation used.
        """
        if not parameter.tensors:
            raise MissingWeights(
                f"It is not known from which of the checkpoint's tensors {parameter.name} was loaded."
            )
        parts = [self._part(name) for name in parameter.tensors]
        if len({part.shape[1:] for part in parts}) > 1 or any(part.ndim == 0 for part in parts[1:]):
            raise MissingWeights(f"The tensors {list(parameter.tensors)} do not fit together.")
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return _padded(whole.astype(numpy_dtype(parameter.dtype), copy=False), parameter.shape)

    def _part(self, name: str) -> npt.NDArray[Any]:
        dtype, shape, data = self._read(name)
        known = self._trace.run.checkpoint.get(name)
        if known is None or known[2] != xxhash.xxh3_128_hexdigest(data):
            raise MissingWeights(
                f"{name} is not what {self._trace.path} was recorded with"
                + (", which says nothing of it." if known is None else f" (xxh3-128 {known[2]}); give --model.")
            )
        return np.frombuffer(data, numpy_dtype(dtype)).reshape(shape)

    def _read(self, name: str) -> tuple[str, tuple[int, ...], bytes]:
        kept = self._kept.get(name)
        if kept is not None:
            return kept.dtype, kept.shape, kept.load()
        stored = self._stored.get(name)
        if stored is None:
            raise MissingWeights(
                f"There is no tensor {name} in {self._directory}; give the checkpoint with --model."
            )
        return stored.dtype, stored.shape, stored.read()

    @cached_property
    def _kept(self) -> Mapping[str, Value]:
        return self._trace.weights()

    @cached_property
    def _directory(self) -> Path:
        if self._model is None:
            raise MissingWeights("It is not known where the checkpoint is; give it with --model.")
        return self._model

    @cached_property
    def _stored(self) -> Mapping[str, _Stored]:
        if not self._directory.is_dir():
            raise MissingWeights(
                f"There is no model directory {self._directory}; give the checkpoint with --model."
            )
        return {
            name: _Stored(path, dtype, tuple(entry["shape"]), base + entry["data_offsets"][0])
            for path in sorted(self._directory.glob("*.safetensors"))
            if path.is_file()
            for name, base, entry in entries(path)
            if (dtype := DTYPE_NAMES.get(entry["dtype"])) in DTYPES
        }


def _padded(whole: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """``whole`` with rows of zeros, where the operator has more of them. It has fewer on a rank of several, and
    none after the engine has packed it elsewhere."""
    more = shape[0] - whole.shape[0] if len(shape) == whole.ndim and shape[1:] == whole.shape[1:] and shape else 0
    if more <= 0:
        return whole
    if more > MOST_PADDING:
        raise MissingWeights(f"The operator is said to have {more} rows more than the checkpoint.")
    return np.concatenate([whole, np.zeros((more, *whole.shape[1:]), whole.dtype)])
