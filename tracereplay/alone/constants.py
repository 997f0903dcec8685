"""Tensors that recorded kernels take by name: parameters from the checkpoint, buffers from the trace."""

from __future__ import annotations

from pathlib import Path

import xxhash

from tracereplay.errors import MissingWeights
from tracereplay.event import Constant, Parameter
from tracereplay.passes import RECORD
from tracereplay.trace import TensorBytes, Trace
from tracereplay.trace.kernels import Kernels
from tracereplay.trace.parameters import Parameters

__all__ = ["Constants"]


class Constants:
    """The model's tensors that one rank's kernels name.

    Args:
        trace: a recording with kernels.
        rank: whose.
        model: the checkpoint's directory, if it has moved since recording.
    """

    def __init__(self, trace: Trace, rank: int = 0, model: Path | None = None) -> None:
        self._parameters = Parameters(trace, model)
        self._known = {c.name: c for step in trace.segment(RECORD, rank).steps() for c in _told(step.kernels)}
        self._sources: dict[str, Parameter] = {}
        for site in trace.sites(RECORD, rank).values():
            # The logits processor has the head's weights, and names them as the model does.
            self._sources.update({p.name: p for p in site.parameters})
            self._sources.update({f"{site.name}.{p.name}": p for p in site.parameters})

    def load(self, name: str) -> TensorBytes:
        """A constant as it was when the recording started.

        Raises:
            MissingWeights: it is missing, or differs from what was recorded.
        """
        constant = self._known.get(name)
        if constant is None:
            raise MissingWeights(f"The trace does not say what {name} is.")
        value = constant.value
        data = self._of_checkpoint(constant) if value is None else value.load()
        return TensorBytes(constant.dtype, constant.shape, constant.strides, data)

    def _of_checkpoint(self, constant: Constant) -> bytes:
        source = self._sources.get(constant.name)
        if source is None:
            raise MissingWeights(
                f"{constant.name} belongs to no operator, so it cannot be loaded from the checkpoint."
            )
        array = self._parameters.load(source)
        data = array.tobytes()
        if array.shape != constant.shape or constant.digest not in (None, xxhash.xxh3_128_hexdigest(data)):
            raise MissingWeights(f"The engine's {constant.name} differed from the checkpoint's.")
        return data


def _told(kernels: object) -> tuple[Constant, ...]:
    return kernels.constants if isinstance(kernels, Kernels) else ()
