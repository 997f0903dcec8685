"""Environment variables by which the analyst's side controls an engine's processes."""

from __future__ import annotations

__all__ = [
    "ARGUMENTS",
    "CONTROL",
    "ENABLED",
    "ENDED",
    "GRAPHS",
    "GRAPH_MEMORY",
    "NO_TAPS",
    "OPTIONS",
    "RECORD_TO",
    "SOCKET",
]

ENABLED = "TRACEREPLAY_GUEST"
NO_TAPS = "TRACEREPLAY_NO_TAPS"  # do not tap the model, to measure the observer effect
ARGUMENTS = "TRACEREPLAY_ARGUMENTS"  # what the engine was started with, as JSON; set by its front end
RECORD_TO = "TRACEREPLAY_RECORD"  # a trace directory: record all that the engine generates
ENDED = "TRACEREPLAY_ENDED"  # a file: once it is there, the recording is over, though the engine lives on
OPTIONS = "TRACEREPLAY_OPTIONS"  # how: `recorder.options.Options`, as JSON
GRAPH_MEMORY = "TRACEREPLAY_GRAPH_MEMORY"  # set by the user: bytes on the device for what they stage
GRAPHS = "TRACEREPLAY_GRAPHS"  # what is captured into CUDA graphs: `recorder.options.GraphOptions`, as JSON
CONTROL = "TRACEREPLAY_CONTROL"  # a directory in memory: orders to a recording that runs, and what its workers say
SOCKET = "TRACEREPLAY_SOCKET"  # the recording's control.sock
