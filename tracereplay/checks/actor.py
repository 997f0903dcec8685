"""What runs on the nodes of a cluster: an engine in an actor, and comparisons. Nothing here imports Ray, except in
the process of an actor."""

from __future__ import annotations

import importlib
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tracereplay.checks.engine import KeptEngine
from tracereplay.checks.golden import opened_golden
from tracereplay.checks.rows import Ready, Task, failed, made
from tracereplay.comparator import compare_traces
from tracereplay.environments.registry import Engine, registered
from tracereplay.errors import EngineFailed, TracereplayError
from tracereplay.launch.process import LAST_LINES
from tracereplay.store.cache import addressed
from tracereplay.trace import open_trace
from tracereplay.trace.into_pack import pack_trace
from tracereplay.verdict import Verdict

__all__ = ["Compared", "Made", "Worker", "compare", "last_lines"]

_LOG = "engine.log"
Failure = tuple[int, str, str]  # exit code, sentence, last lines


@dataclass(frozen=True)
class Made:
    """What came of a replay.

    Args:
        node: where it is.
        path: the candidate's trace there.
        verdict: where golden cannot be compared with it.
        error: why there is neither.
        seconds: it took.
    """

    node: str
    seconds: float
    path: str = ""
    verdict: Verdict | None = None
    error: Failure | None = None


@dataclass(frozen=True)
class Compared:
    """What came of a comparison; ``trace`` is the candidate's as one file, if it is kept."""

    seconds: float
    verdict: Verdict | None = None
    error: Failure | None = None
    trace: bytes | None = None


class Worker:
    """Keeps an engine from one row to the next."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tracereplay-"))
        self._engine = KeptEngine(self._folder / _LOG)

    def where(self) -> tuple[str, str]:
        """The node, and the directory of this worker there."""
        return _node(), str(self._folder)

    def replay(self, task: Task) -> Made:
        """Makes a candidate's trace beside those of other rows; where the engine fails, it is tried once more."""
        begun = time.monotonic()
        try:
            found = self._made(task, 0)
        except EngineFailed:
            self._engine.forget()
            try:
                found = self._made(task, 1)
            except Exception as error:
                return self._failed(task, error, begun)
        except Exception as error:
            return self._failed(task, error, begun)
        path, verdict = found
        return Made(_node(), time.monotonic() - begun, str(path), verdict)

    def close(self) -> None:
        """Ends the engine, and removes what is left of it."""
        self._engine.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _made(self, task: Task, number: int) -> tuple[Path, Verdict | None]:
        row, out = _here(task.row), self._folder / f"{task.number}-{number}.trace"
        with opened_golden(row.check, _quiet) as golden:
            return out, made(row, self._engine, task.locked, golden, out, _quiet)

    def _failed(self, task: Task, error: Exception, begun: float) -> Made:
        return Made(_node(), time.monotonic() - begun, error=_failure(task, error))


def compare(task: Task, path: str, keep: bool) -> Compared:
    """Compares golden with a candidate's trace on this node, which is removed then."""
    begun = time.monotonic()
    try:
        with opened_golden(task.row.check, _quiet) as golden:
            verdict = addressed(compare_traces(golden, Path(path), task.row.policy, model=task.row.check.model))
        trace = _packed(Path(path)) if keep else None
        shutil.rmtree(path, ignore_errors=True)
        return Compared(time.monotonic() - begun, verdict, trace=trace)
    except Exception as error:
        return Compared(time.monotonic() - begun, error=_failure(task, error))


def last_lines(folder: str) -> str:
    """The end of what a dead worker's engines printed; what it left is removed."""
    try:
        lines = (Path(folder) / _LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    shutil.rmtree(folder, ignore_errors=True)
    return "\n".join(lines[-LAST_LINES:])


def _here(row: Ready) -> Ready:
    """The row with the engine as it is here: where the interpreter is not, what is registered under its name."""
    if row.engine.python.exists() or (own := _registered(row.engine.name)) is None:
        return row
    return Ready(row.check, own, row.policy)


def _registered(name: str) -> Engine | None:
    try:
        return registered(name)
    except TracereplayError:
        return None


def _packed(path: Path) -> bytes:
    with tempfile.TemporaryDirectory(prefix="tracereplay-") as folder, open_trace(path) as trace:
        out = Path(folder) / "candidate.pack"
        pack_trace(trace, out)
        return out.read_bytes()


def _failure(task: Task, error: Exception) -> Failure:
    found = failed(task, error, 0.0)
    return found.exit_code, found.error or "", found.last_lines


def _node() -> str:
    return str(importlib.import_module("ray").get_runtime_context().get_node_id())


def _quiet(line: str) -> None:
    """Nobody reads it here."""
