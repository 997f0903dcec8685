"""A segment of an older version in this one: its steps by their forms, its chunks as they are stored.

The digest of what it holds stays the same; see FORMAT.md.
"""

from __future__ import annotations

import os
from pathlib import Path

from tracereplay.errors import UsageError
from tracereplay.storage.files import PRIVATE
from tracereplay.trace import records
from tracereplay.trace.append import Appender
from tracereplay.trace.codec import PLANES, Encoder
from tracereplay.trace.digest import content_digest
from tracereplay.trace.frames import Frame, Tag, fetch, scan
from tracereplay.trace.plain import unpack
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.sealed import Seal

__all__ = ["copy_end", "copy_record", "is_current", "upgrade"]

_COMPUTED = ("steps", "index", "indexes", "sites", "forms", "content", "outline")  # what an END frame is made of


def is_current(segment: SegmentReader) -> bool:
    """Whether a segment is as this version writes it, as far as it goes."""
    return "indexes" in segment.summary if segment.summary is not None else len(segment.index.forms) > 0


def upgrade(segment: SegmentReader, out: Path, seal: Seal | None) -> None:
    """Writes ``segment`` anew, without decoding its chunks.

    Args:
        segment: of a complete or an interrupted recording.
        out: file to create.
        seal: of the new one; None: none.

    Raises:
        UsageError: the file cannot be written.
        DamagedTrace: a step cannot be read.
    """
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, PRIVATE)
        try:
            to = Appender(fd, Encoder(PLANES), seal=seal)
            to.magic()
            steps = forms = 0
            for frame in scan(segment.file):
                if frame.kind == Tag.DATA:
                    to.as_stored(*fetch(segment.file, frame.offset, frame.length, Tag.DATA))
                else:
                    copy_record(segment, to, frame, steps, segment.told(frame, steps, forms))
                steps += frame.kind == Tag.STEP
                forms += frame.kind == Tag.FORM
            if segment.summary is not None:
                copy_end(segment, to, segment.summary.get("content") or content_digest(segment))
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}.") from error


def copy_record(segment: SegmentReader, to: Appender, frame: Frame, number: int, data: bytes) -> None:
    """Writes what another segment has in a frame, unless that is a chunk or stands for nothing by itself.

    Args:
        segment: the other one.
        to: where to write.
        frame: its header there.
        number: of the frame among those of its kind.
        data: its decoded payload; of a step, the record in one piece.
    """
    if frame.kind in (Tag.META, Tag.SITES):
        to.packed(Tag(frame.kind), data)
    if frame.kind == Tag.STEP:
        try:
            to.step(unpack(data, segment.name, own=True), segment.index.first_chunk(number), data)
        except records.WRONG:
            to.packed(Tag.STEP, data)


def copy_end(segment: SegmentReader, to: Appender, content: str | None = None) -> None:
    """Closes the segment that is written, if the other one is closed; ``content`` is the digest, if known."""
    if segment.summary is not None:
        kept = {key: value for key, value in segment.summary.items() if key not in _COMPUTED}
        known = {} if content is None else {"content": content}
        to.end({**kept, "outline": segment.written_outline(), **known})
        to.sync()
