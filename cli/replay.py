"""``tracereplay replay``: run a golden trace again under another engine, and judge it."""

from __future__ import annotations

import tempfile
from contextlib import closing
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from tracereplay.cli.options import (
    Force,
    JsonFile,
    Log,
    PolicyFile,
    Settings,
    Strict,
    assignments,
    check_json,
    check_log,
    policy_of,
)
from tracereplay.cli.output import deliver, progress, without_empty
from tracereplay.comparator import Policy, compare_traces
from tracereplay.environments import Engine, load_engine
from tracereplay.errors import UsageError
from tracereplay.launch import jobs
from tracereplay.trace import open_trace
from tracereplay.verdict import Verdict

__all__ = ["check_model_at", "replay", "replay_and_judge"]


class Mode(str, Enum):
    injected = "injected"
    rerun = "rerun"


def replay(
    golden: Annotated[Path, typer.Argument(metavar="GOLDEN", help="The trusted recording.", show_default=False)],
    engine: Annotated[str, typer.Option(help="Name of the engine under test.", show_default=False)],
    mode: Annotated[
        Mode,
        typer.Option(
            help="injected: which operator differs on the same inputs; rerun: only where the generations part."
        ),
    ] = Mode.injected,
    settings: Settings = [],  # noqa: B006
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The checkpoint, if it is no longer where it was.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="TRACE", help="Keep the candidate's trace.", show_default=False),
    ] = None,
    policy: PolicyFile = None,
    strict: Strict = False,
    json_file: JsonFile = None,
    log: Log = None,
    force: Force = False,
) -> None:
    """Run a golden trace again under another engine, and name the first operator that differs."""
    candidate, rules, given = load_engine(engine), policy_of(policy, strict), assignments(settings)
    check_json(json_file)
    check_log(log)
    check_model_at(golden, model)
    options = {"settings": given, "model": model, "injected": mode is Mode.injected, "log": log, "force": force}
    verdict = replay_and_judge(candidate, golden, out, rules, **options)
    raise typer.Exit(deliver(verdict, json_file))


def replay_and_judge(engine: Engine, golden: Path, out: Path | None, rules: Policy, **options: Any) -> Verdict:
    """Replays with progress on stderr and compares; the candidate's trace is removed if ``out`` is None.

    Args:
        engine, golden, options: see `jobs.replay`.
        out: where the candidate's trace goes.
        rules: what is tolerated.
    """
    with tempfile.TemporaryDirectory(prefix="tracereplay-") as folder:
        kept = out or Path(folder) / "candidate.trace"
        with progress(f"Replaying under {engine.name}") as report:
            with without_empty(out, force=options.get("force", False)):
                jobs.replay(engine, golden, kept, report=report, **options)
            report("Comparing")
            return compare_traces(golden, kept, rules)


def check_model_at(golden: Path, model: Path | None) -> None:
    """Raises UsageError if golden's model is gone and ``--model`` does not say where it is now."""
    with closing(open_trace(golden)) as trace:
        recorded = trace.run.get("workload", {}).get("model")
    if model is None and recorded is not None and not Path(recorded).is_dir():
        raise UsageError(f"The model was at {recorded} when it was recorded; say with --model where it is now.")
