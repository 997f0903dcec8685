"""Creates traces that an engine writes: their headers, and waiting until all writers have exited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tracereplay.launch.process import Launchable
from tracereplay.recorder.options import OPERATOR
from tracereplay.trace import TraceDirectory
from tracereplay.workload import Workload

__all__ = ["engine_header", "making", "replay_header", "run_header"]


def engine_header(engine: Launchable, info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How a trace describes its engine; ``info`` is what the engine reported when it had started."""
    return {"name": engine.name, "family": engine.family, **(info or {})}


def run_header(kind: str, engine: Launchable, workload: Workload, level: str = OPERATOR) -> dict[str, Any]:
    """The header of a trace before its engine has started; ``kind`` is recording or replay, ``level`` operator or
    kernel."""
    return {
        "tracereplay": version("tracereplay"),
        "kind": kind,
        "level": level,
        "engine": engine_header(engine),
        "workload": workload.as_dict(),
        "notes": [],
    }


def replay_header(engine: Launchable, workload: Workload, golden: str, level: str = OPERATOR) -> dict[str, Any]:
    """The header of a replay of the trace with the digest ``golden``."""
    return {**run_header("replay", engine, workload, level), "golden": golden}


@contextmanager
def making(path: Path, header: Mapping[str, Any], recipients: Sequence[str] = ()) -> Iterator[TraceDirectory]:
    """Creates a trace at ``path``, for its recipients only if there are any; it is complete if nothing is raised.

    Exits only after all writers of the trace have, however the engine ended.
    """
    directory = TraceDirectory(path, header, recipients)
    try:
        yield directory
    finally:
        directory.settle()
    directory.complete()
