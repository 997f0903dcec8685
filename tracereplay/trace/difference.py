"""Tensors as their difference from bytes of a base trace: the arithmetic, and where the bytes are.

**Difference.** Bit patterns of floats, read as integers and turned so that they grow with the value, differ by as
many units in the last place as the values lie apart. The difference, wrapped to the width and folded (0, -1, 1, -2
...), is small where two engines agree. All of it is a bijection: every bit pattern survives, NaN payloads too.

**Spans.** Engines put different rows into one batch, and one has in a single tensor what another has in three. So
the bytes that a tensor is a difference from are put together from spans of the base's tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tracereplay.dtypes import DTYPES
from tracereplay.errors import DamagedTrace
from tracereplay.trace.chunk import MAX_HEADER, Bytes, Entry

__all__ = [
    "MAX_SPANS",
    "Array",
    "Base",
    "Span",
    "Spans",
    "base_of",
    "difference",
    "read_spans",
    "restore",
    "restored",
    "write_spans",
]  # fmt: skip

MAX_SPANS = 16384  # of a chunk, so that the list of them stays below `MAX_HEADER`

Array = npt.NDArray[Any]
# The contiguous bytes of a tensor of the base trace: segment, chunk, number in the chunk.
Base = Callable[[str, int, int], Bytes]


class Span(NamedTuple):
    """Bytes of a stored tensor of the base trace.

    Args:
        size: how many.
        segment: file name of its segment; empty: the base has nothing for these bytes, and zeros stand for them.
        chunk, tensor: where it is.
        first: the first of the bytes.
        whole: whether the tensor must have no other bytes.
    """

    size: int
    segment: str = ""
    chunk: int = 0
    tensor: int = 0
    first: int = 0
    whole: bool = False


Spans = Sequence[Span]  # of one tensor, in the order of its bytes


def write_spans(bases: Sequence[Spans | None]) -> bytes:
    """What each tensor of a chunk is a difference from, as JSON; None: it is stored as it is."""
    described = [None if spans is None else [_described(span) for span in spans] for spans in bases]
    return json.dumps(described, separators=(",", ":")).encode()


def _described(span: Span) -> list[Any]:
    if not span.segment:
        return [span.size]
    return [span.segment, span.chunk, span.tensor, span.first, span.size]


def read_spans(data: Bytes, sizes: Sequence[int], name: str, *, whole: bool = False) -> list[Spans | None]:
    """The inverse of `write_spans`.

    Args:
        data: as stored, decompressed.
        sizes: of the chunk's tensors, bytes.
        name: of the segment, for messages.
        whole: read what DELTA has in place of spans: one tensor of the base as a whole.

    Raises:
        DamagedTrace: the list cannot be read, is too long, or does not add up to the tensors.
    """
    if len(data) > MAX_HEADER:
        raise DamagedTrace(f"{name} holds references to a base of {len(data)} bytes; the limit is {MAX_HEADER}.")
    try:
        items = json.loads(bytes(data))
        if type(items) is not list or len(items) != len(sizes):
            raise ValueError(f"not a list of {len(sizes)} references, one for each tensor of the chunk")
        count = len(items) if whole else sum(len(item) for item in items if item is not None)
        if count > MAX_SPANS:
            raise ValueError(f"{count} spans, and the limit is {MAX_SPANS}")
        found: list[Spans | None] = [
            None if item is None else [_whole(item, size)] if whole else [_span(span) for span in item]
            for item, size in zip(items, sizes, strict=True)
        ]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DamagedTrace(f"{name} holds references to a base that cannot be read: {error!r}.") from error
    for spans, size in zip(found, sizes, strict=True):
        total = size if spans is None else sum(span.size for span in spans)
        if total != size:
            raise DamagedTrace(f"{name} holds a tensor of {size} bytes as a difference from {total} of its base.")
    return found


def _span(item: list[Any]) -> Span:
    if len(item) == 1:
        return Span(_number(item[0]))
    segment, chunk, tensor, first, size = item
    return Span(_number(size), _segment(segment), _number(chunk), _number(tensor), _number(first))


def _whole(item: list[Any], size: int) -> Span:
    segment, chunk, tensor, *_ = item
    return Span(size, _segment(segment), _number(chunk), _number(tensor), whole=True)


def _segment(value: Any) -> str:
    if type(value) is not str or not value:
        raise ValueError("something else where the name of a segment belongs")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("something else where a whole number belongs")
    return value


def base_of(entries: Sequence[Entry], bases: Sequence[Spans | None], base: Base, size: int, name: str) -> Array:
    """What the tensors of a chunk are differences from, at their places in the chunk; ``uint8 [size]``.

    Args:
        entries: the chunk's tensors.
        bases: their spans, which add up to their sizes; None: zeros.
        base: gives tensors of the base trace.
        size: of the chunk, bytes.
        name: of the segment, for messages.

    Raises:
        DamagedTrace: the base has no such bytes.
    """
    found = np.zeros(size, np.uint8)
    # Why in the order of the base's chunks: each is decoded once, however the spans refer to them.
    for start, span in sorted(_placed(entries, bases), key=lambda placed: placed[1][1:4]):
        if not span.segment:
            continue
        tensor = base(span.segment, span.chunk, span.tensor)
        if span.whole and len(tensor) != span.size:
            raise DamagedTrace(f"{name} holds a difference from a tensor of another size in its base.")
        end = span.first + span.size
        if end > len(tensor):
            raise DamagedTrace(
                f"{name} holds a difference from bytes {span.first} to {end} of a tensor in its base that has "
                f"{len(tensor)}."
            )
        found[start : start + span.size] = np.frombuffer(tensor, np.uint8)[span.first : end]
    return found


def _placed(entries: Sequence[Entry], bases: Sequence[Spans | None]) -> Iterator[tuple[int, Span]]:
    """Each span, after the place in the chunk where its bytes belong."""
    for entry, spans in zip(entries, bases, strict=True):
        yield from zip(
            accumulate((span.size for span in spans or ()), initial=entry.start), spans or (), strict=False
        )


def restore(
    chunk: Array, entries: Sequence[Entry], bases: Sequence[Spans | None], base: Base | None, name: str
) -> None:
    """Turns the differences in a chunk into the tensors, in place.

    Args:
        chunk: ``uint8``.
        base: None: it is not known which trace that is.
        entries, bases, name: see `base_of`.

    Raises:
        DamagedTrace: the base has no such bytes, or is not known.
    """
    if all(spans is None for spans in bases):
        return
    if base is None:
        raise DamagedTrace(f"{name} is stored as a difference from another trace, but does not say which.")
    origin = base_of(entries, bases, base, len(chunk), name)
    for entry, spans in zip(entries, bases, strict=True):
        if spans is not None:
            place = slice(entry.start, entry.end)
            chunk[place] = restored(chunk[place].data, origin[place].data, entry.dtype)


def difference(data: Bytes, base: Bytes, dtype: str) -> Array:
    """``data`` as its folded difference from ``base``, word by word; ``uint8`` of the same length."""
    word = DTYPES[dtype].word
    ahead = _ordered(data, dtype) - _ordered(base, dtype)
    signed = ahead.view(f"<i{word}")
    folded: Array = (signed << 1) ^ (signed >> (8 * word - 1))
    return folded.view(np.uint8)


def restored(folded: Bytes, base: Bytes, dtype: str) -> Array:
    """The inverse of `difference`."""
    word = DTYPES[dtype].word
    unsigned = np.frombuffer(folded, f"<u{word}")
    one = np.array(1, unsigned.dtype)
    ahead = (unsigned >> one) ^ (np.zeros_like(unsigned) - (unsigned & one))
    return _from_ordered(_ordered(base, dtype) + ahead, dtype).view(np.uint8)


def _ordered(data: Bytes, dtype: str) -> Array:
    """Bit patterns as unsigned integers that grow with the value."""
    word = DTYPES[dtype].word
    bits = np.frombuffer(data, f"<u{word}")
    if not dtype.startswith(("float", "bfloat", "complex")):
        return bits
    top = np.array(1 << (8 * word - 1), bits.dtype)
    return np.where(bits & top, ~bits, bits | top)


def _from_ordered(ordered: Array, dtype: str) -> Array:
    if not dtype.startswith(("float", "bfloat", "complex")):
        return ordered
    top = np.array(1 << (8 * ordered.dtype.itemsize - 1), ordered.dtype)
    found: Array = np.where(ordered & top, ordered ^ top, ~ordered)
    return found
