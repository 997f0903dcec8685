"""``tracereplay record``: generate under an engine and record every operator's inputs and outputs."""

from __future__ import annotations

import signal
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tracereplay.cli.capture_options import (
    CAPTURE,
    Control,
    Keep,
    LeaveFree,
    Paused,
    ResumeWhenRoom,
    Rotate,
    WhenBehind,
)
from tracereplay.cli.checks import check_log
from tracereplay.cli.choice_options import (
    CHOOSES,
    Every,
    Marked,
    Requests,
    Sample,
    Sides,
    Sites,
    Tokens,
)
from tracereplay.cli.console import progress, stderr, tell
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
    local_path,
    refuse_given,
    with_lora,
)
from tracereplay.cli.privacy_options import KeepFields
from tracereplay.cli.ring_options import (
    Ring,
    Trigger,
    TriggerAfter,
    TriggerEvery,
    TriggerMost,
    tell_ring,
)
from tracereplay.cli.summary import observer_words, summary
from tracereplay.cli.workloads import sampling_of, workload_of_prompts
from tracereplay.environments import load_engine
from tracereplay.errors import EngineFailed, UsageError
from tracereplay.launch import jobs
from tracereplay.launch.asking import MIN_BYTES, RING, How, how_of, options_of
from tracereplay.launch.command import record_traces
from tracereplay.launch.control import check_socket
from tracereplay.recorder.options import Options
from tracereplay.trace import open_trace
from tracereplay.trace.place import new_trace

__all__ = ["record"]

# What a command of the user's says itself.
GENERATES = (
    "model", "prompts", "max_tokens", "temperature", "seed", "logprobs", "n", "settings", "lora",
    "with_weights", "check_observer", "log",
)  # fmt: skip


class Level(str, Enum):
    """See ``--level``."""

    operator = "operator"
    kernel = "kernel"  # what operators dispatch, too


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
        WhenBehind | None,
        typer.Option(
            help="What to do when the writer cannot keep up with the engine.",
            show_default="block; drop for a command",
        ),
    ] = None,
    keep_fields: KeepFields = [],  # noqa: B006
    sample: Sample = None,
    requests: Requests = [],  # noqa: B006
    marked: Marked = False,
    sites: Sites = [],  # noqa: B006
    sides: Sides = "in,out",
    tokens: Tokens = None,
    every: Every = 1,
    ring: Ring = None,
    trigger: Trigger = None,
    trigger_every: TriggerEvery = "60s",
    trigger_most: TriggerMost = 100,
    trigger_after: TriggerAfter = 16,
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
    rotate: Rotate = None,
    keep: Keep = None,
    leave_free: LeaveFree = None,
    resume_when_room: ResumeWhenRoom = False,
    paused: Paused = False,
    control: Control = True,
    log: Log = None,
    force: Force = False,
) -> None:
    """Generate under an engine, and record every operator's inputs and outputs.

    The sampling options apply to prompts that do not set their own.
    """
    behind = "drop" if command else "block"  # a server is not slowed unless asked for
    if when_behind is not None:
        behind = when_behind.value
    if ring is None:
        refuse_given(context, RING, "A trigger makes a trace of a ring; give its size with --ring")
    options = options_of(
        when_behind=behind, level=level.value, check_writes=check_writes, max_steps=max_steps,
        max_bytes=max_bytes, keep_fields=keep_fields, sample=sample, requests=requests, marked=marked, sites=sites,
        sides=sides, tokens=tokens, every=every, ring=ring, trigger=trigger, trigger_every=trigger_every,
        trigger_most=trigger_most, trigger_after=trigger_after, encrypt_to=encrypt_to,
        withhold=None if withhold is None else withhold.value, withhold_key=withhold_key,
    )  # fmt: skip
    if level is Level.operator:
        refuse_given(context, ["check_writes"], "Writes are checked with --level kernel only")
    if command:
        refuse_given(context, GENERATES, "A command after -- says itself what to generate, and prints as it likes")
        how = how_of(
            rotate, keep, leave_free, resume_when_room=resume_when_room, paused=paused, control=control,
            ring=ring is not None,
        )  # fmt: skip
        raise typer.Exit(_record_command(command, out, engine, force, options, how))
    if ring is not None:
        raise UsageError("A ring is for a command of yours, after --; prompts have an end, so record them whole.")
    refuse_given(context, ["keep_fields"], "Only the requests of a command after -- have fields")
    refuse_given(context, CHOOSES, "All prompts of a file are recorded; requests are chosen of a command after --")
    refuse_given(context, CAPTURE, "Only a command after -- is recorded into several traces or controlled")
    launched = load_engine(engine) if engine is not None else None
    model = model or (launched.model if launched is not None else None)
    missing = [k for k, v in (("--engine", engine), ("--model", model), ("--prompts", prompts)) if v is None]
    if launched is None or model is None or prompts is None:
        raise UsageError(f"record needs {', '.join(missing)}, or a command of yours after --.")
    sampling = sampling_of(max_tokens, temperature, seed, logprobs, n)
    work = workload_of_prompts(model, prompts, sampling, with_lora(assignments(settings), lora))
    check_log(log)
    with (
        new_trace(out, force=force, inputs=[model, prompts], tell=tell) as place,
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


def _record_command(
    command: list[str], out: Path, engine: str | None, force: bool, options: Options, how: How
) -> int:
    """Runs the command; its exit code is the program's, but for a trace that was cut off."""
    launched = load_engine(engine) if engine else None
    if how.control:
        check_socket(out)
    # Ctrl-C is for the command, at the same terminal: that is how a server ends, and it must not lose its parent.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        if how.collection:
            if force:
                raise UsageError(
                    f"--force replaces a trace, and {out} is a directory of traces, which is continued."
                )
            code, made = record_traces(command, out, engine=launched, options=options, how=how)
        else:
            with new_trace(out, force=force, tell=tell) as place:
                code, made = record_traces(command, place.path, engine=launched, options=options, how=how)
    finally:
        signal.signal(signal.SIGINT, before)
    if how.ring:
        tell_ring(out, made)
        complete = True
    elif how.collection:
        complete = all(whole for _, whole in made)
        lacking = "" if complete else f", {sum(not whole for _, whole in made)} of them incomplete"
        stderr.print(f"Recorded {len(made)} traces{lacking}: {out}", soft_wrap=True, markup=False)
    else:
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
