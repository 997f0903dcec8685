"""``tracereplay check``: run the checks of a file, and say in many forms what came of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tracereplay import checks
from tracereplay.checks.jobs import log_of
from tracereplay.cli.check_forms import Form, append_summary, check_form, deliver_form, summary_file
from tracereplay.cli.checks import check_log
from tracereplay.cli.console import progress, tell
from tracereplay.cli.files import check_distinct, make_room
from tracereplay.cli.options import Log, assignments, local_path, refuse_given
from tracereplay.errors import UsageError

__all__ = ["check"]


def check(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="CHECKS.toml", help="Checks, one table each.", show_default=False)
    ],
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="How results are written. github: annotations, and Markdown to $GITHUB_STEP_SUMMARY; perfetto: "
            "steps and operators with their errors, for ui.perfetto.dev.",
        ),
    ] = Form.table,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", parser=local_path, metavar="FILE", help="File to write them to, beside a table here.",
            show_default="stdout",
        ),
    ] = None,
    only: Annotated[
        list[str],
        typer.Option(metavar="GLOB", help="Names of the checks to run; may be given more than once."),
    ] = [],  # noqa: B006
    keep: Annotated[
        Path | None,
        typer.Option(
            parser=local_path, metavar="DIR", help="Directory to keep traces and verdicts in.", show_default=False
        ),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Record the golden traces anew, and write checks.lock.")
    ] = False,
    reason: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="With --update: why what is computed now is right.", show_default=False
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Engines that run at once on this machine.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Cluster of Ray to spread the checks over, such as auto or HOST:6379.",
            show_default=False,
        ),
    ] = None,
    resource: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=AMOUNT", help="With --ray: what an engine takes if its row does not say it.",
            show_default="cpu=1",
        ),
    ] = [],  # noqa: B006
    log: Log = None,
) -> None:  # fmt: skip
    """Replay golden traces as a file says, and hold the verdicts to what it expects.

    Exits with 0 if each check is as expected, else with the worst of 2, 5, 4, 1, 3 in this order. A golden trace
    that was made for other weights, settings, devices or another format makes its check inconclusive.

    Checks that can share an engine start do. With --jobs or --ray several engines run at once, each with some of
    the checks; where an engine or its worker dies, its check is tried once more.
    """
    found = checks.load_checks(file)
    check_log(log)
    for number in range(1, jobs + 1 if jobs > 1 else 1):
        check_log(log_of(log, number))
    _check_where(context, jobs, ray)
    check_distinct({"CHECKS.toml": file, "checks.lock": found.lock, "--out": out, "--log": log})
    if update:
        refuse_given(
            context, ["form", "out", "keep", "jobs", "ray", "resource"], "With --update nothing is compared"
        )
        with progress(f"Recording the golden traces of {file}") as report:
            for updated in checks.update(found, reason or "", only=only, log=log, report=report):
                tell(updated.words)
        tell(f"{found.lock} says what was accepted, and why; commit it with the golden traces.")
        return
    if reason is not None:
        raise UsageError("--reason says why golden traces are recorded anew; give --update too, or leave it out.")
    check_form(out, form)
    make_room("--keep", keep)
    with _kept(keep, form) as folder:
        with progress(f"Checking {file}") as report:
            results = checks.check(
                found, only=only, keep=folder, log=log, jobs=jobs, ray=ray, resources=_resources(resource),
                report=report,
            )  # fmt: skip
        if keep is None:
            results = results.not_kept()
        if form is Form.github and (summary := summary_file()) is not None:
            append_summary(summary, results)
        deliver_form(results, form, out)
    raise typer.Exit(results.exit_code)


def _check_where(context: typer.Context, jobs: int, ray: str | None) -> None:
    if ray is None:
        refuse_given(context, ["resource"], "Only a cluster has resources to give; add --ray ADDRESS")
    else:
        refuse_given(context, ["jobs", "log"], "With --ray engines run elsewhere, as many as there is room for")


def _resources(given: list[str]) -> dict[str, float]:
    found = assignments(given, "--resource")
    for name, amount in found.items():
        if type(amount) not in (int, float) or not 0 <= amount < 1e15:
            raise UsageError(f"--resource {name}={amount} is no amount; give a number, as in --resource gpu=1.")
    return found


@contextmanager
def _kept(keep: Path | None, form: Form) -> Iterator[Path | None]:
    """Where traces and verdicts are kept; for a form that is made of traces, until it is written."""
    if keep is not None or form is not Form.perfetto:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="tracereplay-") as folder:
        yield Path(folder)
