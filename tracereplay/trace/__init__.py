"""Reading and writing trace files. Nothing outside this package knows their layout (FORMAT.md)."""

from tracereplay.trace.dedup import TensorBytes
from tracereplay.trace.directory import WEIGHTS, TraceDirectory, segment_path, weight_site
from tracereplay.trace.open import Trace, open_trace
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.writer import BudgetSpent, CallOfStep, PendingCall, SegmentWriter

__all__ = [
    "WEIGHTS",
    "BudgetSpent",
    "CallOfStep",
    "PendingCall",
    "SegmentReader",
    "SegmentWriter",
    "TensorBytes",
    "Trace",
    "TraceDirectory",
    "open_trace",
    "segment_path",
    "weight_site",
]
