"""``tracereplay invariance``: the same bits for the same row, whatever the batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tracereplay.cli.checks import check_json, check_log
from tracereplay.cli.console import progress, tell
from tracereplay.cli.files import make_room, write_text
from tracereplay.cli.here import path_or_url, reads_here
from tracereplay.cli.options import (
    JsonFile,
    Log,
    Logprobs,
    Lora,
    MaxTokens,
    Model,
    Prompts,
    Samples,
    SamplingSeed,
    Settings,
    Temperature,
    assignments,
    local_path,
    refuse_given,
    with_lora,
)
from tracereplay.cli.workloads import sampling_of, workload_of_prompts
from tracereplay.environments import load_engine
from tracereplay.errors import UsageError
from tracereplay.gate import workload_of
from tracereplay.invariance import BY_DEFAULT, NAMES, check_invariance, default_prompts
from tracereplay.launch.lengths import as_long_as
from tracereplay.report import invariance as report_form
from tracereplay.report.layout import report_console
from tracereplay.trace import open_trace
from tracereplay.workload import Workload

__all__ = ["invariance"]

SAMPLING = ("max_tokens", "temperature", "seed", "logprobs", "n")


@reads_here("subject")
def invariance(
    context: typer.Context,
    subject: Annotated[
        Path,
        typer.Argument(
            parser=path_or_url,
            metavar="MODEL|GOLDEN",
            help="Directory of a checkpoint, or a trace whose workload is served.",
            show_default=False,
        ),
    ],
    engine: Annotated[str, typer.Option(help="Name of the engine to check.", show_default=False)],
    vary: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="What to vary. batch: serve requests alone, in groups, all together; order: hand them over in "
            "another order; chunks: prefill in chunks; cache: a cold and a warm prefix cache; graphs: pad to CUDA "
            "graphs of other sizes; tp: tensor-parallel ranks, 1 and 2.",
        ),
    ] = ",".join(BY_DEFAULT),
    prompts: Prompts = None,
    max_tokens: MaxTokens = 16,
    temperature: Temperature = 0.0,
    seed: SamplingSeed = None,
    logprobs: Logprobs = 0,
    n: Samples = 1,
    order_seed: Annotated[int, typer.Option(help="Seed of the shuffled order.")] = 0,
    settings: Settings = [],  # noqa: B006
    lora: Lora = [],  # noqa: B006
    model: Model = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            parser=local_path, metavar="DIR", help="Directory to keep the runs' traces in.", show_default=False
        ),
    ] = None,
    json_file: JsonFile = None,
    log: Log = None,
) -> None:
    """Check that an engine computes the same bits for the same row, however requests are served.

    Serves one workload again and again with the same tokens forced, and compares every operator's rows bit for
    bit. Names the first operator that gives other bits on equal inputs, what was varied, and the number of rows in
    a call at which it changes. Without --prompts, a model is given six prompts of token ids, of 5 to 300 tokens.
    Exits with 0 if everything held, 1 if something did not, 3 if something could not be varied.
    """
    launched, given = load_engine(engine), with_lora(assignments(settings), lora)
    names = _names(vary)
    check_json(json_file)
    check_log(log, json_file)
    if _is_trace(subject):
        refuse_given(context, ["prompts", *SAMPLING], "A trace says itself what is generated")
        with open_trace(subject) as golden:
            golden.require_recording()
            workload = as_long_as(golden, workload_of(golden, given, model))
    else:
        refuse_given(context, ["model"], f"{subject} is the model")
        sampling = sampling_of(max_tokens, temperature, seed, logprobs, n)
        if prompts is None:
            refuse_given(context, [*SAMPLING, "lora"], "Sampling options are for prompts of --prompts")
            workload = Workload(str(subject), default_prompts(subject, {**launched.settings, **given}), given)
        else:
            workload = workload_of_prompts(subject, prompts, sampling, given)
    make_room("--keep", keep)
    with progress(f"Checking {launched.name}") as report:
        found = check_invariance(launched, workload, names, seed=order_seed, log=log, keep=keep, report=report)
    _deliver(found.as_dict(), json_file)
    if json_file != "-":
        report_form.render(found, report_console())
    if keep is not None:
        tell(
            f"The runs are in {keep}; compare two with: tracereplay compare --strict {keep}/base.trace {keep}/..."
        )
    raise typer.Exit(found.exit_code)


def _names(vary: str) -> list[str]:
    """The names in ``--vary``, each once, in the order of `NAMES`."""
    given = [name.strip() for name in vary.split(",") if name.strip()]
    if unknown := [name for name in given if name not in NAMES]:
        raise UsageError(f"There is nothing named {unknown[0]!r} to vary; there are {', '.join(NAMES)}.")
    if not given:
        raise UsageError(f"There is nothing to vary; give --vary with some of {', '.join(NAMES)}.")
    return [name for name in NAMES if name in given]


def _is_trace(path: Path) -> bool:
    """Whether it is a trace and not a checkpoint; a packed trace is a file."""
    return path.is_file() or (path / "manifest.json").is_file()


def _deliver(data: Mapping[str, Any], json_file: str | None) -> None:
    if json_file is None:
        return
    text = json.dumps(data, indent=2, allow_nan=False, default=str) + "\n"
    if json_file == "-":
        typer.echo(text, nl=False)
    else:
        write_text(Path(json_file), text)
