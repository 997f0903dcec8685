"""Recording a command of the user's own: ``tracereplay record -o DIR.trace -- vllm serve ...``.

The command runs as it is, with the plugin in its way. What was asked of the engine is not known
beforehand: the segments say which requests began and which tokens came of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracereplay.errors import UsageError
from tracereplay.event import Step
from tracereplay.guest.plugin import OPTIONS, RECORD
from tracereplay.launch.jobs import level_of
from tracereplay.launch.process import Launchable, guest_environment
from tracereplay.storage.checkpoint import read_checkpoint
from tracereplay.trace import TraceDirectory, open_trace
from tracereplay.workload import Prompt, Workload

__all__ = ["record_command"]


class _Interpreter:
    """An engine that is only an interpreter."""

    name = "command"
    env: Mapping[str, str] = {}
    settings: Mapping[str, Any] = {}

    def __init__(self, python: Path) -> None:
        self.python = python


def record_command(
    command: Sequence[str], out: Path, *, engine: Launchable | None = None,
    options: Mapping[str, Any] | None = None,
) -> int:  # fmt: skip
    """Runs ``command`` with recording on.

    Args:
        command: what to run.
        out: trace to make.
        engine: whose environment to run it in; by default the interpreter that the command itself names.
        options: how much is recorded (`recorder.session.Options`).

    Returns:
        The command's exit code. The trace is complete if every worker closed its segment.

    Raises:
        UsageError: the command is not found, or it generated nothing that could be recorded.
    """
    found = _find(command[0], engine)
    launched = engine or _Interpreter(_interpreter(found))
    directory = TraceDirectory(out, {"kind": "recording", "level": level_of(options), "notes": []})
    environment = {**guest_environment(launched), RECORD: str(out.resolve()), OPTIONS: json.dumps(options or {})}
    code = subprocess.run([found, *command[1:]], env=environment).returncode
    _describe(directory)
    return code


def _find(name: str, engine: Launchable | None) -> str:
    beside = None if engine is None else shutil.which(name, path=str(engine.python.parent))
    found = beside or shutil.which(name)
    if found is None:
        raise UsageError(f"The command {name!r} was not found; give a program on PATH, or its whole path.")
    return found


def _interpreter(program: str) -> Path:
    """The Python that runs ``program``: itself, or the one in its first line."""
    if Path(program).name.startswith("python"):
        return Path(program)
    with open(program, "rb") as file:
        first = file.readline(512)
    if first.startswith(b"#!") and b"python" in first:
        return Path(os.fsdecode(first[2:].split()[0]))
    return Path(sys.executable)


def _describe(directory: TraceDirectory) -> None:
    """Fills the manifest from what the segments hold."""
    trace = open_trace(directory.path)
    if "record" not in trace.passes:
        raise UsageError(
            "The command ended and no vLLM engine in it was recorded; does it start vLLM 0.8.5 or newer in an "
            "environment that tracereplay can enter? (--engine NAME says which)"
        )
    segment = trace.segment("record", trace.ranks("record")[0])
    steps = trace.steps("record", trace.ranks("record")[0])
    engine = {"name": "command", **segment.meta.get("engine", {})}
    model = Path(segment.meta.get("model", ""))
    weights = read_checkpoint(model).digest if model.is_dir() else None
    workload = Workload(str(model), _prompts(steps), weights=weights)
    directory.update_run(engine=engine, workload=workload.as_dict())
    complete = all(trace.segment("record", rank).complete for rank in trace.ranks("record"))
    if complete:
        directory.complete()


def _prompts(steps: Sequence[Step]) -> tuple[Prompt, ...]:
    begun = {r.request: r for step in steps for r in step.requests if r.sequence == 0}
    return tuple(Prompt(r.prompt_token_ids, None, r.sampling) for _, r in sorted(begun.items()))
