"""A digest of a segment's contents, which packing and compressing do not change."""

from __future__ import annotations

import xxhash

from tracereplay.trace.append import COUNTED
from tracereplay.trace.reader import SegmentReader

__all__ = ["content_digest", "count_content"]


def count_content(state: xxhash.xxh3_128, kind: int, decoded: bytes | bytearray | memoryview) -> None:
    """Adds a frame to a segment's content digest (see `append.Appender`).

    Args:
        state: to add it to.
        kind: of the frame.
        decoded: its decoded payload; of a step that names a form, the record that version 1 has in one piece.
    """
    if kind in COUNTED:
        state.update(bytes([kind]) + xxhash.xxh3_128_digest(decoded))


def content_digest(segment: SegmentReader) -> str:
    """Computed from the frames; a closed segment has it in its end mark too."""
    state = xxhash.xxh3_128()
    for frame, _, decoded in segment.frames():
        count_content(state, frame.kind, decoded)
    return state.hexdigest()
