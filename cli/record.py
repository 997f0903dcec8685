"""``tracereplay record``: generate under an engine and record every operator's inputs and outputs."""

from __future__ import annotations

import signal
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tracereplay.cli.checks import check_log
from tracereplay.cli.console import progress, stderr
from tracereplay.cli.options import (
    EncryptTo,
    Force,
    Log,
    Logprobs,
    Lora,
    MaxTokens,
    Prompts,
    Samples,
    SamplingSeed,
    Settings,
    Temperature,
    Withhold,
    WithholdKey,
    assignments,
    key_of,
    local_path,
    refuse_given,
    with_lora,
)
from tracereplay.cli.output import new_trace
from tracereplay.cli.summary import observer_words, summary
from tracereplay.cli.workloads import sampling_of, workload_of_prompts
from tracereplay.environments import load_engine
from tracereplay.errors import EngineFailed, UsageError
from tracereplay.launch import jobs
from tracereplay.launch.command import record_command
from tracereplay.recorder.options import Options
from tracereplay.trace import open_trace
from tracereplay.trace.sealed import check_recipients

__all__ = ["record"]

# What a command of the user's says itself.
GENERATES = (
    "model", "prompts", "max_tokens", "temperature", "seed", "logprobs", "n", "settings", "lora",
    "with_weights", "check_observer", "log",
)  # fmt: skip
MIN_BYTES = 1 << 16  # what a segment's description and end take, and some


class Level(str, Enum):
    """See ``--level``."""

    operator = "operator"
    kernel = "kernel"  # what operators dispatch, too


class WhenBehind(str, Enum):
    """See ``--when-behind``."""

    block = "block"  # the engine waits
    drop = "drop"  # steps are left out and counted


def record(
    context: typer.Context,
    out: Annotated[Path, typer.Option("-o", "--out", parser=local_path, metavar="TRACE", help="Trace to write.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND...]",
            help="Command to record instead, such as vllm serve DIR.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Name of the engine.", show_default=False)] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Directory of the checkpoint.", show_default="the engine's own, if it has one"
        ),
    ] = None,
    prompts: Prompts = None,
    max_tokens: MaxTokens = 16,
    temperature: Temperature = 0.0,
    seed: SamplingSeed = None,
    logprobs: Logprobs = 0,
    n: Samples = 1,
    settings: Settings = [],  # noqa: B006
    lora: Lora = [],  # noqa: B006
    level: Annotated[
        Level,
        typer.Option(
            help="operator: record each operator's inputs and outputs; kernel: also the kernels it runs."
        ),
    ] = Level.operator,
    check_writes: Annotated[
        bool,
        typer.Option(help="At kernel level, detect writes that a custom kernel's schema does not declare."),
    ] = True,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Stop recording after this many steps.", show_default=False)
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(min=MIN_BYTES, help="Stop recording before the files exceed this size.", show_default=False),
    ] = None,
    when_behind: Annotated[
        WhenBehind, typer.Option(help="What to do when the writer cannot keep up with the engine.")
    ] = WhenBehind.block,
    with_weights: Annotated[
        bool, typer.Option("--with-weights", help="Copy the weights into the trace, not only their digests.")
    ] = False,
    check_observer: Annotated[
        bool,
        typer.Option(
            "--check-observer", help="Also generate without recording, and report what recording changed."
        ),
    ] = False,
    encrypt_to: EncryptTo = [],  # noqa: B006
    withhold: Withhold = None,
    withhold_key: WithholdKey = None,
    log: Log = None,
    force: Force = False,
) -> None:
    """Generate under an engine, and record every operator's inputs and outputs.

    The sampling options apply to prompts that do not set their own.
    """
    check_recipients(encrypt_to)
    if withhold is not None and level is Level.kernel:
        raise UsageError("Tokens cannot be withheld from what kernels read and write; leave out --level kernel.")
    options = Options(
        max_steps=max_steps, max_bytes=max_bytes, when_behind=when_behind.value, level=level.value,
        check_writes=check_writes, recipients=tuple(encrypt_to),
        withhold=key_of(withhold, withhold_key),
    )  # fmt: skip
    if level is Level.operator:
        refuse_given(context, ["check_writes"], "Writes are checked with --level kernel only")
    if command:
        refuse_given(context, GENERATES, "A command after -- says itself what to generate, and prints as it likes")
        raise typer.Exit(_record_command(command, out, engine, force, options))
    launched = load_engine(engine) if engine is not None else None
    model = model or (launched.model if launched is not None else None)
    missing = [k for k, v in (("--engine", engine), ("--model", model), ("--prompts", prompts)) if v is None]
    if launched is None or model is None or prompts is None:
        raise UsageError(f"record needs {', '.join(missing)}, or a command of yours after --.")
    sampling = sampling_of(max_tokens, temperature, seed, logprobs, n)
    work = workload_of_prompts(model, prompts, sampling, with_lora(assignments(settings), lora))
    check_log(log)
    with (
        new_trace(out, force=force, inputs=[model, prompts]) as place,
        progress(f"Recording under {engine}") as report,
    ):
        jobs.record(
            launched,
            work,
            place.path,
            check_observer=check_observer,
            log=log,
            options=options,
            weights=with_weights,
            report=report,
        )
    _tell(place.path)


def _record_command(command: list[str], out: Path, engine: str | None, force: bool, options: Options) -> int:
    """Runs the command; its exit code is the program's, but for a trace that was cut off."""
    launched = load_engine(engine) if engine else None
    # Ctrl-C is for the command, at the same terminal: that is how a server ends, and it must not lose its parent.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        with new_trace(out, force=force) as place:
            code = record_command(command, place.path, engine=launched, options=options)
    finally:
        signal.signal(signal.SIGINT, before)
    complete = _tell(place.path)
    if code:
        return code if code > 0 else 128 - code
    return 0 if complete else EngineFailed.exit_code


def _tell(out: Path) -> bool:
    """Says what was recorded; returns whether it is all there."""
    with open_trace(out) as trace:
        stderr.print(f"Recorded {summary(trace)}: {out}", soft_wrap=True, markup=False)
        if observer := trace.run.observer:
            stderr.print(f"Recording changed {observer_words(observer)}.", soft_wrap=True, markup=False)
        return trace.complete
