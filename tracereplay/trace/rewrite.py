"""Re-encoding a segment: compressed more strongly, or as its difference from a base trace; same contents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracereplay.dtypes import DTYPES
from tracereplay.errors import UsageError
from tracereplay.event import Call, Value
from tracereplay.trace import codec
from tracereplay.trace.append import Appender
from tracereplay.trace.chunk import WIDTHS, Entry
from tracereplay.trace.frames import Tag
from tracereplay.trace.open import Trace
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.records import Located, located_of
from tracereplay.trace.upgrade import copy_end, copy_record

__all__ = ["References", "references_to", "rewrite"]

References = dict[tuple[int, int], codec.Reference]  # chunk and tensor -> the base's


def rewrite(
    segment: SegmentReader, out: Path, *, level: int, references: References | None, base: Trace | None
) -> None:
    """Writes ``segment`` anew, frame by frame.

    Args:
        segment: of a complete or an interrupted recording.
        out: file to create.
        level: of zstandard, 1 to 22.
        references: which tensors to store as a difference, and from which of ``base``.
        base: the base trace; its tensors must be of the same size.

    Raises:
        UsageError: the file cannot be written.
    """
    encoder = codec.Encoder(codec.STRONG if base is None else codec.DELTA, level)
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            _copy(segment, Appender(fd, encoder), references or {}, base)
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}.") from error


def _copy(segment: SegmentReader, to: Appender, references: References, base: Trace | None) -> None:
    to.magic()
    for frame, number, decoded in segment.frames():
        if frame.kind == Tag.DATA:
            _copy_chunk(segment, to, number, references, base)
        else:
            copy_record(segment, to, frame, number, bytes(decoded))
    copy_end(segment, to)


def _copy_chunk(
    segment: SegmentReader, to: Appender, number: int, references: References, base: Trace | None
) -> None:
    chunk, entries = segment.chunk(number)
    start = bytes(chunk[: min((e.start for e in entries), default=len(chunk))])
    plain = _regions(entries, [chunk[e.start : e.end] for e in entries])
    if base is None:
        to.chunk(start, plain)
        return
    wanted = [references.get((number, i)) for i in range(len(entries))]
    found = [None if r is None else base.tensor(*r) for r in wanted]
    kept = [b is not None and len(b) == e.end - e.start for b, e in zip(found, entries, strict=True)]
    data: list[codec.Bytes] = [
        part if b is None or not keep else codec.difference(part, b, e.dtype).tobytes()
        for e, b, keep in zip(entries, found, kept, strict=True)
        for part in [chunk[e.start : e.end]]
    ]
    used = [r if keep else None for r, keep in zip(wanted, kept, strict=True)]
    to.chunk(start, _regions(entries, data), used, [region for _, region in plain])


def _regions(entries: list[Entry], data: list[codec.Bytes]) -> list[tuple[int, codec.Bytes]]:
    """The tensors' bytes region by region, as `chunk.ChunkBuilder` lays them."""
    order = sorted(range(len(entries)), key=lambda i: entries[i].start)
    joined = {
        width: b"".join(data[i] for i in order if DTYPES[entries[i].dtype].word == width) for width in WIDTHS
    }
    return [(width, region) for width, region in joined.items() if region]


def references_to(base: Trace, segment: SegmentReader, key: tuple[str, int]) -> References:
    """Which tensors of a candidate's segment have a counterpart in its golden trace.

    A counterpart is the same tensor of the same call of a step over the same rows. Where engines composed their
    batches differently there is none, and the tensor is stored as it is.

    Args:
        base: the golden trace.
        segment: the candidate's.
        key: pass and rank of the segment.
    """
    name = key[0] if key in base.parts else next(iter(base.passes), "")
    if (name, key[1]) not in base.parts:
        return {}
    source = base.part((name, key[1]))
    known: dict[Any, codec.Reference] = {}
    for place, located in _placed(source):
        if located.pieces == 1 and not located.strided and located.chunk >= 0:
            known.setdefault(place, (f"{name}-rank{key[1]}.seg", located.chunk, located.tensor))
    found: References = {}
    for place, located in _placed(segment):
        if place in known and located.pieces == 1 and not located.strided and located.chunk >= 0:
            found.setdefault((located.chunk, located.tensor), known[place])
    return found


def _placed(segment: SegmentReader) -> Iterator[tuple[Any, Located]]:
    """Each value with what it is: site, call, side, index, rows, dtype and shape."""
    for number in range(len(segment)):
        for call in segment.step(number).calls:
            for side, index, value in _values(call):
                rows = (call.rows_out if side == "out" else call.rows_in).tobytes()
                yield (call.site, call.number, side, index, rows, value.dtype, value.shape), located_of(value)


def _values(call: Call) -> Iterator[tuple[str, int, Value]]:
    for index, value in enumerate(call.inputs):
        yield "in", index, value
    for index, value in enumerate(call.outputs):
        yield "out", index, value
    for index, value in call.written.items():
        yield "written", index, value
