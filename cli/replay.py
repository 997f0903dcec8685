"""``tracereplay replay``: run a golden trace again under another engine, and judge it."""

from __future__ import annotations

import tempfile
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from tracereplay.cli.options import (
    Force,
    GoldenTrace,
    JsonFile,
    Log,
    Model,
    PolicyFile,
    Settings,
    Strict,
    assignments,
    check_json,
    check_log,
    check_model_at,
    policy_of,
)
from tracereplay.cli.output import deliver, progress, without_empty
from tracereplay.comparator import Policy, compare_traces
from tracereplay.environments import Engine, load_engine
from tracereplay.launch import jobs
from tracereplay.verdict import Verdict

__all__ = ["replay", "replay_and_judge"]


class Mode(str, Enum):
    injected = "injected"
    rerun = "rerun"


def replay(
    golden: GoldenTrace,
    engine: Annotated[str, typer.Option(help="Name of the engine under test.", show_default=False)],
    mode: Annotated[
        Mode,
        typer.Option(
            help="injected: which operator differs on the same inputs; rerun: only where the generations part."
        ),
    ] = Mode.injected,
    settings: Settings = [],  # noqa: B006
    model: Model = None,
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
