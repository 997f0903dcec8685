"""Steps as the engine hands them over, put together in a segment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tracereplay.event import Request, RowKey, RowMap, Sampled
from tracereplay.recorder.live import LiveRequests
from tracereplay.recorder.protocol import Descriptor, SampledBytes, StepMessage
from tracereplay.trace import CallOfStep, SegmentWriter, TensorBytes, records
from tracereplay.trace.kernels import renumbered

__all__ = ["Assembly", "read_sampled"]


def _same(rows: RowMap) -> RowMap:
    return rows


class Assembly:
    """The step that is under way, and the segment that it goes to.

    Args:
        writer: of the segment.
        rows: gives a row map as it is stored: whose rows these are in this trace.
    """

    def __init__(self, writer: SegmentWriter, rows: Callable[[RowMap], RowMap] = _same) -> None:
        self.writer = writer
        self._rows = rows
        self._values: list[int] = []  # indices of its tensors among the segment's values
        self._asides: list[bytes] = []  # its bytes that are not values

    def tensors(self, memory: memoryview, tensors: Sequence[Any], asides: Sequence[Sequence[int]]) -> None:
        """Adds tensors of the step; see `protocol`. ``memory`` must stay until the segment's `moved`."""
        for described in tensors:
            d = Descriptor(*described)
            data = memory[d.offset : d.offset + d.size]
            tensor = TensorBytes(d.dtype, tuple(d.shape), tuple(d.strides), data, d.storage, d.start)
            self._values.append(self.writer.add(tensor))
        self._asides += [bytes(memory[offset : offset + length]) for offset, length in asides]

    def commit(
        self, step: StepMessage, begun: Sequence[Request] = (), earlier: Sequence[Sampled] = (),
        live: LiveRequests | None = None,
    ) -> None:  # fmt: skip
        """Writes the step; raises what `SegmentWriter.commit` does.

        Args:
            step: as the engine says it.
            begun, earlier: requests and tokens of steps before, which this trace lacks.
            live: is told of the step's, whether it can be written or not.
        """
        maps = [self._rows(records.read_rows(data)) for data in step.maps]
        calls = [
            CallOfStep(slot, n, maps[i], maps[j], self._at(inputs), self._at(outputs), self._at(written), fed)
            for slot, n, i, j, inputs, outputs, written, fed in step.calls
        ]
        sampled = [*earlier, *(s for piece in step.sampled for s in self._sampled(SampledBytes(*piece)))]
        requests = [*begun, *map(self.request, step.requests)]
        if live is not None:
            live.ended(step.finished)
            live.requested(requests)
            live.sampled(sampled)
        kernels = None if step.kernels is None else renumbered(step.kernels, self._values)
        self.writer.commit(
            step.number, maps[0], calls, sampled, step.notes, requests, step.weight_updates, kernels, step.census,
            step.padded, step.company,
        )  # fmt: skip

    def request(self, said: Any) -> Request:
        """A request as the engine says it, with its number in this trace."""
        found = records.read_request(said)
        number = int(self._rows(np.array([[found.request, found.sequence, 0]], np.int32))[0, 0])
        return replace(found, request=number)

    def clear(self) -> None:
        """Forgets the step."""
        self._values.clear()
        self._asides.clear()

    def _at(self, side: Mapping[int, int]) -> dict[int, int]:
        """One side's tensors, by their places among the values of the segment's step."""
        return {index: self._values[place] for index, place in side.items()}

    def _sampled(self, piece: SampledBytes) -> list[Sampled]:
        tokens, choices, logprobs = read_sampled(piece, self._asides)
        keys = self._rows(np.array(piece.keys, np.int32).reshape(-1, 3)).tolist()
        said: list[float | None] = [None] * len(keys) if logprobs is None else logprobs.tolist()
        found = zip(keys, tokens.tolist(), choices.tolist(), said, strict=True)
        return [Sampled(RowKey(*key), *rest) for key, *rest in found]


def read_sampled(piece: SampledBytes, asides: Sequence[bytes]) -> tuple[Any, Any, Any]:
    """Tokens and choices as ``int64``, logprobs as ``float32`` or None."""
    tokens, choices = (np.frombuffer(asides[i], np.int64) for i in (piece.tokens, piece.choices))
    logprobs = None if piece.logprobs < 0 else np.frombuffer(asides[piece.logprobs], np.float32)
    return tokens, choices, logprobs
