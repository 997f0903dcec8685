"""The verbs, by name: a module is imported when its verb is called.

Why: some verbs need the comparator, the templates of scripts or the registry of engines, whose imports take longer
than ``--help`` does, and no verb needs what all of them need.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

__all__ = ["VERBS", "Verbs", "load"]

# The first sentence of each verb's own help, which stands here again so that the list does not need the module.
VERBS: Mapping[str, str] = {
    "demo": "Replay a generation of vLLM 0.8.5 (V0) under vLLM 0.32.0 (V1), and say what differs.",
    "record": "Generate under an engine, and record every operator's inputs and outputs.",
    "ray": "Record engines inside actors of Ray.",
    "status": "Show how a running recording goes: what it keeps and costs, bytes, steps, drops, the last error.",
    "start": "Go on recording: after stop, record --paused, or (into a collection) after a failure.",
    "stop": "Pause a running recording; the recorded command goes on, and start resumes it.",
    "trigger": "Keep what a flight recorder has in a trace of its own; without one, begin the next trace of a "
    "collection.",
    "set": "Change what a running recording keeps, from the engine's next step on.",
    "replay": "Replay a golden trace under another engine, and name the first operator that differs.",
    "compare": "Compare two traces and give the verdict; no engine is started.",
    "check": "Replay golden traces as a file says, and hold the verdicts to what it expects.",
    "calibrate": "Measure the noise between runs that should agree with GOLDEN, and write it as a policy.",
    "invariance": "Check that an engine computes the same bits for the same row, however requests are served.",
    "logprobs": "Show how the logprobs of two traces differ, as importance ratios; no engine is started.",
    "repro": "Write one recorded call as inputs, expected outputs and a script that needs only torch (or the "
    "engine).",
    "show": "Show what a trace contains, or one request; with SITE, the tensors of that operator's calls.",
    "verify": "Read every byte of a trace and report whether it is complete, recoverable or damaged.",
    "pack": "Pack a trace into one file, which opens like the directory, also from a URL.",
    "goldens": "List the traces below a folder or URL: name, digest, date, engine, model, size and requests.",
    "export": "Write selected tensors to a safetensors file, and the calls they belong to as JSON lines.",
    "report": "Show a verdict written by --json, or that of two traces; exits with 0 whatever the verdict.",
    "bundle": "Make one file of two traces that shows what differs, to attach to a bug report; or check such a "
    "file.",
    "engine": "Build, register and examine engines.",
    "bisect": "Prove by experiment what makes an engine diverge.",
}

_MODULES = dict.fromkeys(
    ("status", "start", "stop", "trigger", "set"), "control"
)  # where it is not the verb's name


class Verbs(TyperGroup):
    """A group whose commands are their names and a line of help, until one of them is called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, line in VERBS.items():
            self.add_command(TyperCommand(name, help=line), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and load(str(listed.name)), rest


def load(name: str) -> Any:
    """The command of that name, from its module: a function called as the verb, or an ``app`` of several."""
    module = import_module(f"tracereplay.cli.{_MODULES.get(name, name)}")
    program = typer.Typer()
    if hasattr(module, "app"):
        program.add_typer(module.app, name=name)
    else:
        program.command(name)(getattr(module, f"{name}_" if name == "set" else name))
    return get_group(program).commands[name]
