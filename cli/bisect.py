"""``tracereplay bisect``: prove by experiment what makes an engine diverge."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tracereplay.bisector.operators import MAX_PASSES, bisect_operators
from tracereplay.bisector.settings import MAX_STARTS, bisect_settings
from tracereplay.bisector.versions import bisect_versions
from tracereplay.cli.checks import check_golden, check_json, check_log, policy_of
from tracereplay.cli.console import progress, stderr
from tracereplay.cli.here import reads_here
from tracereplay.cli.options import (
    GoldenTrace,
    JsonFile,
    Log,
    Lora,
    Model,
    PolicyFile,
    Settings,
    Strict,
    assignments,
    given_words,
    local_path,
    with_lora,
)
from tracereplay.cli.output import deliver, weights_first
from tracereplay.engines.known import PACKAGE
from tracereplay.environments import load_engine
from tracereplay.errors import UsageError
from tracereplay.report.next_step import Given
from tracereplay.verdict import Verdict

__all__ = ["app"]

app = typer.Typer(help="Prove by experiment what makes an engine diverge.", no_args_is_help=True)

EngineName = Annotated[str, typer.Option("--engine", help="Name of the engine under test.", show_default=False)]
Work = Annotated[
    Path | None,
    typer.Option(
        parser=local_path,
        metavar="DIR",
        help="Directory for measurements; rerunning the same command resumes from it.",
        show_default=False,
    ),
]


@app.command()
@reads_here("golden")
def operators(
    golden: GoldenTrace,
    engine: EngineName,
    settings: Settings = [],  # noqa: B006
    lora: Lora = [],  # noqa: B006
    model: Model = None,
    max_passes: Annotated[
        int, typer.Option(min=1, help="Maximum number of generations after the replay.")
    ] = MAX_PASSES,
    work: Work = None,
    policy: PolicyFile = None,
    strict: Strict = False,
    json_file: JsonFile = None,
    log: Log = None,
) -> None:
    """Find the smallest set of operators and edges whose own errors cause the divergence.

    Replays GOLDEN, then generates repeatedly, cancelling the own errors of a different set each time.
    """
    candidate, rules, given = (
        load_engine(engine),
        policy_of(policy, strict),
        with_lora(assignments(settings), lora),
    )
    check_json(json_file)
    check_log(log, json_file)
    check_golden(golden, given, model)
    told = given_words(settings, lora, model, policy, strict)
    first = weights_first(golden, candidate.name, json_file, given=told)
    with first, _folder(work) as folder, progress(f"Bisecting {candidate.name} by operators") as report:
        verdict = bisect_operators(
            candidate, golden, folder, policy=rules, settings=given, model=model, max_passes=max_passes, log=log,
            report=report,
        )  # fmt: skip
    _finish(verdict, json_file, told)


@app.command("settings")
@reads_here("golden")
def settings_(
    golden: GoldenTrace,
    engine: EngineName,
    settings: Settings = [],  # noqa: B006
    lora: Lora = [],  # noqa: B006
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="ENGINE", help="Take the settings from this engine, not golden.", show_default=False
        ),
    ] = None,
    model: Model = None,
    max_starts: Annotated[
        int, typer.Option(min=1, help="Maximum number of engine starts after the first.")
    ] = MAX_STARTS,
    work: Work = None,
    policy: PolicyFile = None,
    strict: Strict = False,
    json_file: JsonFile = None,
    log: Log = None,
) -> None:
    """Find the smallest set of settings that causes the divergence, as arguments to pass.

    Restarts the engine repeatedly, each time with golden's values for some of the settings that differ.
    """
    candidate, rules, given = (
        load_engine(engine),
        policy_of(policy, strict),
        with_lora(assignments(settings), lora),
    )
    like = None if from_ is None else load_engine(from_)
    check_json(json_file)
    check_log(log, json_file)
    check_golden(golden, given, model)
    told = given_words(settings, lora, model, policy, strict)
    first = weights_first(golden, candidate.name, json_file, given=told)
    with first, _folder(work) as folder, progress(f"Bisecting {candidate.name} by settings") as report:
        verdict = bisect_settings(
            candidate, golden, folder, like=like, policy=rules, settings=given, model=model,
            max_starts=max_starts, log=log, report=report,
        )  # fmt: skip
    _finish(verdict, json_file, told)


@app.command()
@reads_here("golden")
def versions(
    golden: GoldenTrace,
    good: Annotated[str, typer.Option(metavar="VERSION", help="An older version that does not diverge.")],
    bad: Annotated[str, typer.Option(metavar="VERSION", help="A newer version that does.")],
    package: Annotated[str, typer.Option(metavar="NAME", help="Package to install.")] = PACKAGE,
    only: Annotated[
        str | None,
        typer.Option("--versions", metavar="A,B,...", help="Versions to try.", show_default="all releases"),
    ] = None,
    settings: Settings = [],  # noqa: B006
    lora: Lora = [],  # noqa: B006
    model: Model = None,
    work: Work = None,
    policy: PolicyFile = None,
    strict: Strict = False,
    json_file: JsonFile = None,
    log: Log = None,
) -> None:
    """Find the first version that diverges from GOLDEN, and compare it with the one before it.

    Builds an environment for each version it tries; these stay registered as PACKAGE-VERSION.
    """
    rules, given = policy_of(policy, strict), with_lora(assignments(settings), lora)
    check_json(json_file)
    check_log(log, json_file)
    check_golden(golden, given, model)
    named = None if only is None else [version.strip() for version in only.split(",") if version.strip()]
    told = given_words(settings, lora, model, policy, strict)
    first = weights_first(golden, package, json_file, given=told)
    with first, _folder(work) as folder, progress(f"Bisecting {package} from {good} to {bad}") as report:
        verdict = bisect_versions(
            golden, folder, good=good, bad=bad, package=package, versions=named, policy=rules, settings=given,
            model=model, log=log, report=report,
        )  # fmt: skip
    _finish(verdict, json_file, told)


def _finish(verdict: Verdict, json_file: str | None, told: Given) -> NoReturn:
    if verdict.verdict == "match":
        stderr.print("There is no divergence to bisect.")
    raise typer.Exit(deliver(verdict, json_file, given=told))


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    """The folder for measurements: the user's, or one that is deleted afterwards."""
    if work is None:
        with tempfile.TemporaryDirectory(prefix="tracereplay-") as folder:
            yield Path(folder)
        return
    if work.exists() and not work.is_dir():
        raise UsageError(f"--work {work} is not a directory.")
    if work.is_dir() and any(work.iterdir()) and not (work / "journal.jsonl").exists():
        raise UsageError(f"--work {work} contains something other than a bisection; give a new directory.")
    yield work
