"""What reading a segment may cost: a fixed allowance, plus more for a larger file.

Why by the size of the file: a few kilobytes of zstandard can stand for gigabytes, and a record can name the same
bytes a million times. Recordings of real engines stay far below: their records compress to a tenth, their tensors
hardly at all, and the same tensor is named some thirty times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tracereplay.dtypes import nbytes
from tracereplay.errors import DamagedTrace
from tracereplay.event import Call, Step, Value
from tracereplay.storage.files import File

__all__ = ["Limits"]

# Bytes in any case, and bytes more for each byte of the file.
RECORDS = (1 << 20, 64)
CHUNKS = (64 << 20, 1024)
VALUES = (128 << 20, 4096)


class Limits:
    """What is left of a segment's allowance. Reading something again costs nothing.

    Args:
        file: the segment.
        base_size: gives the bytes of the trace that it may be a difference from; asked when nothing is left.
    """

    def __init__(self, file: File, base_size: Callable[[], int] | None = None) -> None:
        self._file = file
        self._base_size = base_size
        self._left = {what: base + factor * file.size for what, (base, factor) in _ALLOWED.items()}
        self._seen: set[int] = set()  # of frames that are no steps: there are few
        self._seen_chunks: set[int] = set()
        self._seen_steps = {what: bytearray() for what in ("records", "forms", "values", "kernels")}

    def record(self, offset: int, size: int) -> None:
        """A record, not a step's, is about to be read: ``size`` bytes, decoded, in the frame at ``offset``."""
        if offset not in self._seen:
            self._seen.add(offset)
            self._take("records", size)

    def again(self, size: int) -> None:
        """A record of ``size`` bytes, decoded, is about to be read, and counts each time: it may be forgotten."""
        self._take("records", size)

    def chunks(self, offset: int, size: int) -> None:
        """The segment has chunks of ``size`` bytes, decoded, in all, by the index at ``offset``."""
        if offset not in self._seen_chunks:
            self._seen_chunks.add(offset)
            self._take("chunks", size)

    def step_record(self, place: int, size: int) -> None:
        """The record of the step at ``place``, of ``size`` bytes, decoded, is about to be read."""
        self._once("records", place, size)

    def whole(self, place: int, size: int) -> None:
        """The step at ``place`` is put together with its form, whose record is of ``size`` bytes, decoded."""
        if self._first("forms", place):
            self._take("records", size)

    def step(self, place: int, step: Step) -> None:
        """The step at ``place`` was read; whoever wants its values reads these bytes."""
        self._once("values", place, _size(step.calls))

    def form(self, place: int, size: int) -> None:
        """The step at ``place`` was read by its form; its calls name values and rows of ``size`` bytes."""
        self._once("values", place, size)

    def kernels(self, place: int, values: Iterable[Value]) -> None:
        """The kernels of the step at ``place`` were read, which name these values."""
        self._once("kernels", place, sum(nbytes(v.dtype, v.shape) for v in values))

    def _once(self, what: str, place: int, size: int) -> None:
        """Takes ``size`` unless the step at ``place`` was counted."""
        if self._first(what, place):
            self._take(what, size)

    def _first(self, what: str, place: int) -> bool:
        """Whether the step at ``place`` was not asked about before; a byte a step, since traces may be long."""
        seen = self._seen_steps[what]
        if len(seen) <= place:
            seen.extend(bytes(place + 1 - len(seen)))
        before, seen[place] = seen[place], True
        return not before

    def _take(self, what: str, size: int) -> None:
        self._left[what] -= size
        if self._left[what] < 0 and self._base_size is not None:
            more, self._base_size = self._base_size(), None
            self._left = {key: left + _ALLOWED[key][1] * more for key, left in self._left.items()}
        if size < 0 or self._left[what] < 0:
            raise DamagedTrace(
                f"{self._file.name} asks for far more memory than its {self._file.size} bytes can honestly "
                f"account for (its {what} alone)."
            )


_ALLOWED = {"records": RECORDS, "chunks": CHUNKS, "values": VALUES, "kernels": VALUES}


def _size(calls: Iterable[Call]) -> int:
    """Bytes of the calls' values and rows, each as often as it is named."""
    sizes: dict[int, int] = {}  # by identity: what one call gives and the next takes is one value
    total = 0
    for call in calls:
        total += call.rows_in.nbytes + call.rows_out.nbytes
        for value in (*call.inputs, *call.outputs, *call.written.values()):
            size = sizes.get(id(value))
            if size is None:
                size = sizes[id(value)] = nbytes(value.dtype, value.shape)
            total += size
    return total
