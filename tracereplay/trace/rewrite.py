"""Re-encoding a segment: compressed more strongly, or as its difference from a base trace; same contents."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tracereplay.dtypes import DTYPES
from tracereplay.errors import UsageError
from tracereplay.event import Step
from tracereplay.storage.files import PRIVATE
from tracereplay.trace import codec
from tracereplay.trace.append import Appender
from tracereplay.trace.chunk import WIDTHS, Bytes, Entry
from tracereplay.trace.difference import MAX_SPANS, Base, Spans, base_of, difference, write_spans
from tracereplay.trace.frames import Tag
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.sealed import Seal
from tracereplay.trace.upgrade import copy_end, copy_record

__all__ = ["Bases", "by_region", "rewrite"]

# Of a step and the first chunk that is its own: by chunk and tensor, what in the base the tensor may be stored as
# its difference from.
Bases = Callable[[Step, int], Mapping[tuple[int, int], Spans]]


def rewrite(
    segment: SegmentReader, out: Path, *, level: int, bases: Bases | None = None, base: Base | None = None,
    seal: Seal | None = None,
) -> None:  # fmt: skip
    """Writes ``segment`` anew, frame by frame.

    Args:
        segment: of a complete or an interrupted recording.
        out: file to create.
        level: of zstandard, 1 to 22.
        bases: what tensors may be stored as a difference from; each is, where that is smaller. None: none is.
        base: gives the tensors that ``bases`` names.
        seal: of the new segment; None: none.

    Raises:
        UsageError: the file cannot be written.
    """
    encoder = codec.Encoder(codec.STRONG if base is None else codec.ROWS, level)
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, PRIVATE)
        try:
            _Copy(segment, Appender(fd, encoder, seal=seal), bases, base).run()
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}.") from error


class _Copy:
    """A segment on its way into another; it knows of one step at a time."""

    def __init__(self, segment: SegmentReader, to: Appender, bases: Bases | None, base: Base | None) -> None:
        self._segment, self._to, self._bases, self._base = segment, to, bases, base
        self._steps = self._chunks = 0  # copied
        self._known: Mapping[tuple[int, int], Spans] | None = None  # of the step whose chunks are being copied

    def run(self) -> None:
        segment, to = self._segment, self._to
        to.magic()
        for frame, number, decoded in segment.frames():
            if frame.kind == Tag.DATA:
                self._chunks = number
                self._chunk(number)
                continue
            copy_record(segment, to, frame, number, bytes(decoded))
            if frame.kind == Tag.STEP:
                self._steps += 1
                self._known = None
        copy_end(segment, to)

    def _chunk(self, number: int) -> None:
        chunk, entries = self._segment.chunk(number)
        start = bytes(chunk[: min((e.start for e in entries), default=len(chunk))])
        plain = [chunk[e.start : e.end] for e in entries]
        if self._base is None:
            self._to.chunk(start, by_region(entries, plain))
            return
        bases = [_of_size(self._step_bases().get((number, i)), entry) for i, entry in enumerate(entries)]
        origin = base_of(entries, bases, self._base, len(chunk), self._segment.name)
        stored: list[Bytes] = [*plain]
        left = MAX_SPANS
        for i, (entry, spans) in enumerate(zip(entries, bases, strict=True)):
            if spans is None or len(spans) > left:
                bases[i] = None
                continue
            folded = difference(plain[i], origin[entry.start : entry.end].data, entry.dtype).data
            if _smaller(folded, plain[i], spans, entry.dtype):
                stored[i] = folded
                left -= len(spans)
            else:
                bases[i] = None
        self._to.chunk(start, by_region(entries, stored), bases, [part for _, part in by_region(entries, plain)])

    def _step_bases(self) -> Mapping[tuple[int, int], Spans]:
        """Of the step that follows the chunk: chunks are written ahead of the step that they belong to."""
        if self._known is None:
            there = self._steps < len(self._segment)
            step = self._segment.step(self._steps) if there else None
            self._known = {} if self._bases is None or step is None else self._bases(step, self._chunks)
        return self._known


def _of_size(spans: Spans | None, entry: Entry) -> Spans | None:
    """The spans, unless a value said that a stored tensor has another size than it has."""
    fits = spans is not None and sum(span.size for span in spans) == entry.end - entry.start
    return spans if fits else None


def _smaller(folded: Bytes, plain: Bytes, spans: Spans, dtype: str) -> bool:
    """Whether the difference takes less than the tensor, by the entropy of their planes and what names the spans.

    Engines that sample other tokens compute other rows, which have nothing to do with each other.
    """
    named = len(write_spans([spans]))
    if named > len(plain):  # a chunk's list of spans must not be longer than the chunk
        return False
    word = DTYPES[dtype].word
    return _entropy(folded, word) + named / 4 < _entropy(plain, word)


def _entropy(data: Bytes, word: int) -> float:
    """Bytes that an entropy coder needs for the planes of ``data``, at least."""
    total = 0.0
    for plane in codec.split([data], word):
        counts = np.bincount(plane, minlength=1)
        shares = counts[counts > 0] / len(plane)
        total -= len(plane) * float(shares @ np.log2(shares)) / 8
    return total


def by_region(entries: Sequence[Entry], data: Sequence[Bytes]) -> list[tuple[int, Bytes]]:
    """The tensors' bytes region by region, as `chunk.ChunkBuilder` lays them."""
    order = sorted(range(len(entries)), key=lambda i: entries[i].start)
    joined = {
        width: b"".join(data[i] for i in order if DTYPES[entries[i].dtype].word == width) for width in WIDTHS
    }
    return [(width, region) for width, region in joined.items() if region]
