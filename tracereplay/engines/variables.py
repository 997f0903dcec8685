"""Environment variables by which the analyst's side speaks to the processes of an engine."""

from __future__ import annotations

__all__ = ["ENABLED", "NO_TAPS", "OPTIONS", "RECORD_TO"]

ENABLED = "TRACEREPLAY_GUEST"
NO_TAPS = "TRACEREPLAY_NO_TAPS"  # leave the model as it is: what an engine gives when nobody looks
RECORD_TO = "TRACEREPLAY_RECORD"  # a trace directory: record all that the engine generates
OPTIONS = "TRACEREPLAY_OPTIONS"  # how: `recorder.options.Options`, as JSON
