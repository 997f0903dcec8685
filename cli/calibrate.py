"""``tracereplay calibrate``: derive tolerances from runs that should agree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tracereplay import calibrator
from tracereplay.calibrator import NAMES, Variation, named_variation
from tracereplay.cli.checks import check_golden, check_log
from tracereplay.cli.console import progress, stderr
from tracereplay.cli.files import POLICY, check_distinct, check_output, make_room, write_text
from tracereplay.cli.here import reads_here
from tracereplay.cli.options import (
    GoldenTrace,
    Log,
    Lora,
    Settings,
    assignments,
    local_path,
    refuse_given,
    with_lora,
)
from tracereplay.environments import load_engine
from tracereplay.errors import UsageError
from tracereplay.report import calibration as report_form
from tracereplay.report.layout import report_console
from tracereplay.trace import open_trace

__all__ = ["calibrate"]

BY_DEFAULT = "batch,threads,chunks"


@reads_here("golden")
def calibrate(
    context: typer.Context,
    golden: GoldenTrace,
    engine: Annotated[str, typer.Option(help="Name of an engine known to be good.", show_default=False)],
    vary: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="What to vary. batch: run requests one at a time; threads: use another OMP_NUM_THREADS; chunks: "
            "prefill in chunks; repeat: change nothing.",
        ),
    ] = BY_DEFAULT,
    also: Annotated[
        list[str],
        typer.Option(
            metavar="'KEY=VALUE ...'",
            help="Add a run with these engine arguments, environment variables (in capitals), or engine=NAME for "
            "another engine.",
        ),
    ] = [],  # noqa: B006
    runs: Annotated[int, typer.Option(min=1, help="Number of runs of each variation.")] = 1,
    settings: Settings = [],  # noqa: B006
    lora: Lora = [],  # noqa: B006
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Checkpoint directory, if it has moved.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            parser=local_path,
            metavar="POLICY.toml",
            help="File to write the policy to.",
            show_default="stdout",
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            parser=local_path, metavar="DIR", help="Directory to keep the runs' traces in.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing policy.")] = False,
    log: Log = None,
) -> None:
    """Measure the noise between runs that should agree with GOLDEN, and write it as a policy.

    Each run replays GOLDEN with a change that must not matter. An operator's noise is how much its outputs differ
    on golden inputs; its tolerance is the largest noise plus a margin, and never below the default. A variation
    that the engine refuses is skipped with the reason. Pass the file to replay, compare and bisect with --policy.
    """
    if out is None:
        refuse_given(context, ["force"], "Without -o POLICY there is nothing to replace")
    known, given = load_engine(engine), with_lora(assignments(settings), lora)
    _check_out(out, force)
    check_log(log)
    check_distinct({"--out": out, "--log": log})
    check_golden(golden, given, model)
    with open_trace(golden) as trace:
        variations = [named_variation(name.strip(), trace.run) for name in vary.split(",") if name.strip()]
    variations += [_also(text) for text in also]
    if not variations:
        raise UsageError(f"There is nothing to vary; give --also, or --vary with some of {', '.join(NAMES)}.")
    make_room("--keep", keep)
    with progress(f"Calibrating {known.name}") as report:
        found = calibrator.calibrate(
            known, golden, variations, runs=runs, settings=given, model=model, log=log, keep=keep, report=report
        )
    if out is None:
        typer.echo(found.text, nl=False)
        return
    write_text(out, found.text)
    report_form.render(found, report_console())
    stderr.print(f"\nWrote the policy to {out}.", soft_wrap=True, markup=False)


def _also(text: str) -> Variation:
    """``KEY=VALUE ...``; capitals are environment variables, whose values stay text."""
    words = text.split()
    env = dict(word.split("=", 1) for word in words if "=" in word and word.split("=", 1)[0].isupper())
    settings: dict[str, Any] = assignments((w for w in words if w.split("=", 1)[0] not in env), "--also")
    engine = settings.pop("engine", None)
    if not (settings or env or engine):
        raise UsageError(f"--also {text!r} changes nothing; give KEY=VALUE.")
    return Variation("also", settings, env, None if engine is None else load_engine(str(engine)))


def _check_out(out: Path | None, force: bool) -> None:
    if out is None:
        return
    if out.is_file() and not force:
        raise UsageError(f"{out} already exists; give another path, or --force to replace it.")
    check_output("--out", out, POLICY)
