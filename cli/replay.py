"""``tracereplay replay``: replay a golden trace under another engine, and compare the two."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Protocol

import typer

from tracereplay.alone.replay import Selection, replay_isolated
from tracereplay.cli.bundled import model_for
from tracereplay.cli.checks import check_golden, check_json, check_log, policy_of
from tracereplay.cli.console import progress, tell
from tracereplay.cli.here import reads_here
from tracereplay.cli.options import (
    CandidateOut,
    Force,
    GoldenTrace,
    JsonFile,
    Log,
    Lora,
    Model,
    PolicyFile,
    Settings,
    Strict,
    UseOracle,
    assignments,
    given_words,
    read_from,
    refuse_given,
    with_lora,
)
from tracereplay.cli.output import deliver, weights_first
from tracereplay.comparator import Policy, compare_traces
from tracereplay.environments import Engine, load_engine
from tracereplay.errors import UsageError
from tracereplay.launch import jobs
from tracereplay.trace.place import new_trace
from tracereplay.verdict import Verdict

__all__ = ["replay", "replay_and_judge"]


class Mode(str, Enum):
    injected = "injected"
    rerun = "rerun"
    isolated = "isolated"


@reads_here("golden")
def replay(
    context: typer.Context,
    golden: GoldenTrace,
    engine: Annotated[str, typer.Option(help="Name of the engine under test.", show_default=False)],
    mode: Annotated[
        Mode,
        typer.Option(
            help="injected: find the operator that differs on golden inputs; rerun: only find where generations "
            "diverge; isolated: run recorded operators and kernels one by one, without a model or engine."
        ),
    ] = Mode.injected,
    settings: Settings = [],  # noqa: B006
    lora: Lora = [],  # noqa: B006
    model: Model = None,
    bundled: Annotated[
        bool,
        typer.Option("--use-bundled-weights", help="Use the model that a bundle brings along."),
    ] = False,
    site: Annotated[
        str | None,
        typer.Option(metavar="GLOB", help="Sites to replay, with --mode isolated.", show_default=False),
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(metavar="GLOB", help="Kernels to replay, with --mode isolated.", show_default=False),
    ] = None,
    out: CandidateOut = None,
    policy: PolicyFile = None,
    strict: Strict = False,
    oracle: UseOracle = False,
    other_weights: Annotated[
        bool,
        typer.Option(
            "--other-weights",
            help="Continue if the checkpoint differs from golden's; no operator is blamed then.",
        ),
    ] = False,
    json_file: JsonFile = None,
    log: Log = None,
    force: Force = False,
) -> None:
    """Replay a golden trace under another engine, and name the first operator that differs."""
    candidate, rules, given = (
        load_engine(engine),
        policy_of(policy, strict),
        with_lora(assignments(settings), lora),
    )
    if out is None:
        refuse_given(context, ["force"], "Without -o TRACE there is nothing to replace")
    check_json(json_file)
    check_log(log, json_file)
    with model_for(golden, model, bundled, mode.value) as used:
        if mode is Mode.isolated:
            refuse_given(context, ["settings", "log", "other_weights"], "Isolated replay starts no engine")
            work: Work = partial(
                replay_isolated, candidate, golden, selection=Selection(site or "*", kernel), model=used,
                reference=oracle,
            )  # fmt: skip
        else:
            if site or kernel:
                raise UsageError("--site and --kernel select calls to replay in isolation; add --mode isolated.")
            check_golden(golden, given, used)
            work = partial(
                jobs.replay, candidate, golden, settings=given, model=used, injected=mode is Mode.injected,
                other_weights=other_weights, log=log,
            )  # fmt: skip
        judge = partial(compare_traces, golden, policy=rules, oracle=oracle, model=used)
        told = given_words(settings, lora, model, policy, strict)
        with weights_first(golden, candidate.name, json_file, mode.value, told):
            verdict = _judged(work, judge, golden, out, f"Replaying under {candidate.name}", force=force)
        raise typer.Exit(deliver(verdict, json_file, given=told, model=used))


Report = Callable[[str], None]
Judge = Callable[[Path], Verdict]


class Work(Protocol):
    """Makes a candidate's trace at ``out``."""

    def __call__(self, out: Path, /, *, report: Report) -> object: ...


def replay_and_judge(
    engine: Engine, golden: Path, out: Path | None, rules: Policy, *, model: Path | None = None,
    force: bool = False,
) -> Verdict:  # fmt: skip
    """Replays with progress on stderr and compares; the candidate's trace is removed if ``out`` is None.

    Args:
        engine, golden, model: see `jobs.replay`.
        out: where the candidate's trace goes.
        rules: what is tolerated.
        force: replace a trace at ``out``.
    """
    work, judge = partial(jobs.replay, engine, golden, model=model), partial(compare_traces, golden, policy=rules)
    return _judged(work, judge, golden, out, f"Replaying under {engine.name}", force=force)


def _judged(work: Work, judge: Judge, golden: Path, out: Path | None, title: str, *, force: bool) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="tracereplay-") as folder:
        kept = out or Path(folder) / "candidate.trace"
        with progress(title) as report:
            with new_trace(kept, force=force, inputs=read_from(golden), tell=tell) as place:
                work(place.path, report=report)
            report("Comparing")
            return judge(place.path)
