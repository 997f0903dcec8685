"""The trace file, both sides. Nothing outside this package knows how it is laid out."""

from tracereplay.trace.directory import Trace, TraceDirectory, open_trace, segment_path
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.writer import PendingCall, SegmentWriter, TensorBytes

__all__ = [
    "PendingCall",
    "SegmentReader",
    "SegmentWriter",
    "TensorBytes",
    "Trace",
    "TraceDirectory",
    "open_trace",
    "segment_path",
]
