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
    assignments,
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
from tracereplay.recorder.choosing import Choice, positions_of, rate_of
from tracereplay.recorder.options import FIELDS, KERNEL, Options
from tracereplay.trace import open_trace
from tracereplay.trace.sealed import check_recipients
from tracereplay.trace.withheld import key_in, new_key

__all__ = ["record"]

# What a command of the user's says itself.
GENERATES = (
    "model", "prompts", "max_tokens", "temperature", "seed", "logprobs", "n", "settings", "lora",
    "with_weights", "check_observer", "log",
)  # fmt: skip
# How requests are chosen of those that a server is asked for.
CHOOSES = ("sample", "requests", "marked")
MIN_BYTES = 1 << 16  # what a segment's description and end take, and some


class Level(str, Enum):
    """See ``--level``."""

    operator = "operator"
    kernel = "kernel"  # what operators dispatch, too


class Kept(str, Enum):
    """See ``--withhold``."""

    tokens = "tokens"


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
    keep_fields: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help=f"Field of a server's requests to keep: {', '.join(FIELDS)}. May be repeated.",
            show_default="none",
        ),
    ] = [],  # noqa: B006
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="RATE", help="Record this share of a command's requests, such as 1/1000.", show_default=False
        ),
    ] = None,
    requests: Annotated[
        list[str],
        typer.Option(metavar="GLOB", help="Record a command's requests with such an id; may be repeated."),
    ] = [],  # noqa: B006
    marked: Annotated[
        bool,
        typer.Option(
            "--marked",
            help='Record a command\'s requests that ask for it: vllm_xargs of {"tracereplay": "record"}, which '
            "also counts under --sample and --requests.",
        ),
    ] = False,
    sites: Annotated[
        list[str], typer.Option(metavar="GLOB", help="Record operators at such sites only; may be repeated.")
    ] = [],  # noqa: B006
    sides: Annotated[
        str, typer.Option(metavar="in,out", help="Record inputs (in), outputs (out) or both.")
    ] = "in,out",
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:BEHIND",
            help="Record operators at these positions of a sequence only, such as 0:64.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[int, typer.Option(metavar="N", help="Record operators in one step of N only.")] = 1,
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
    withhold: Annotated[
        Kept | None,
        typer.Option(
            help="Keep prompts and outputs out of the trace; it can be compared, but not generated again.",
            show_default=False,
        ),
    ] = None,
    withhold_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Key of the digests that stand for tokens, made if missing: traces of one key can be compared.",
            show_default="one that is thrown away",
        ),
    ] = None,
    log: Log = None,
    force: Force = False,
) -> None:
    """Generate under an engine, and record every operator's inputs and outputs.

    The sampling options apply to prompts that do not set their own.
    """
    check_recipients(encrypt_to)
    options = Options(
        max_steps=max_steps, max_bytes=max_bytes, when_behind=when_behind.value, level=level.value,
        check_writes=check_writes, recipients=tuple(encrypt_to),
        withhold=_key(withhold, withhold_key, level), keep_fields=_fields(keep_fields),
        sites=tuple(sites) or Options.sites, sides=_sides(sides),
        choice=_choice(sample, requests, marked, tokens, every),
    )  # fmt: skip
    _refuse_kernels(options)
    if level is Level.operator:
        refuse_given(context, ["check_writes"], "Writes are checked with --level kernel only")
    if command:
        refuse_given(context, GENERATES, "A command after -- says itself what to generate, and prints as it likes")
        raise typer.Exit(_record_command(command, out, engine, force, options))
    refuse_given(context, ["keep_fields"], "Only the requests of a command after -- have fields")
    refuse_given(context, CHOOSES, "All prompts of a file are recorded; requests are chosen of a command after --")
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


def _key(withhold: Kept | None, file: Path | None, level: Level) -> str | None:
    """The key of the digests that stand for what is withheld; None if nothing is."""
    if withhold is None:
        if file is not None:
            raise UsageError(
                "--withhold-key is the key of what --withhold keeps out; give that too, or leave it out."
            )
        return None
    if level is Level.kernel:
        raise UsageError("Tokens cannot be withheld from what kernels read and write; leave out --level kernel.")
    return new_key() if file is None else key_in(file)


def _fields(names: list[str]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in FIELDS]:
        raise UsageError(f"{unknown[0]!r} is no field that can be kept; --keep-fields takes {', '.join(FIELDS)}.")
    return tuple(dict.fromkeys(names))


def _sides(text: str) -> tuple[str, ...]:
    """Raises UsageError unless these are ``in``, ``out`` or both."""
    found = tuple(side.strip() for side in text.split(","))
    if not set(found) <= {"in", "out"} or len(set(found)) < len(found):
        raise UsageError(f"--sides {text} is none; give in, out, or in,out.")
    return found


def _choice(sample: str | None, requests: list[str], marked: bool, tokens: str | None, every: int) -> Choice:
    """Raises UsageError if one of them makes no sense."""
    if every < 1:
        raise UsageError(f"--every {every} would never record a step; give 1 or more.")
    if "" in requests:
        raise UsageError("--requests is empty and fits no request; give a glob of ids, such as 'cmpl-a*'.")
    rate = None if sample is None else rate_of(sample)
    return Choice(rate, tuple(requests), marked, None if tokens is None else positions_of(tokens), every)


def _refuse_kernels(options: Options) -> None:
    """Raises UsageError where kernels would be recorded with the rows of requests that are not."""
    if options.level == KERNEL and (options.choice.chooses or options.choice.tokens is not None):
        raise UsageError(
            "Kernels take whole batches, with the rows of all requests in them; record operators only "
            "(--level operator), or leave out --sample, --requests, --marked and --tokens."
        )


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
