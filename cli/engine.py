"""``tracereplay engine``: build, register and examine engines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tracereplay import environments
from tracereplay.engines.known import DEFAULT, EXAMPLE, FAMILIES, family_named
from tracereplay.environments.doctor import CHECKS, Diagnosis, examine, start_engine
from tracereplay.environments.registry import unreadable
from tracereplay.errors import EngineFailed, UsageError
from tracereplay.launch.home import home
from tracereplay.launch.process import shell_environment
from tracereplay.report.layout import report_console

__all__ = ["app"]

app = typer.Typer(help="Build, register and examine engines.", no_args_is_help=True)
progress = Console(stderr=True, highlight=False)

Name = Annotated[str, typer.Argument(help="The engine's name.", show_default=False)]
Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Default for an engine argument, such as enforce_eager=true."),
]


@app.command()
def create(
    name: Name,
    requirements: Annotated[
        list[str], typer.Argument(metavar="REQUIREMENT...", help=f"Packages to install, such as {EXAMPLE}.")
    ],
    python: Annotated[
        str | None, typer.Option(help="Python interpreter or version to use.", show_default="this version")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Rebuild an existing environment.")] = False,
) -> None:
    """Build an environment with uv, apply the known fixes for its packages, and register it as NAME."""
    with progress.status(f"Creating the engine '{name}'") as status:

        def report(line: str) -> None:
            status.update(f"Creating the engine '{name}'", spinner="dots")
            progress.print(f"  {line}", style="dim", markup=False, soft_wrap=True)

        made = environments.create_engine(name, requirements, python=python, rebuild=rebuild, report=report)
    known = family_named(made.engine.family)
    version = made.engine.versions.get(known.package)
    what = f"{known.title} {version}" if version else " ".join(made.engine.requirements)
    if made.built:
        progress.print(f"The engine '{name}' is ready ({what}, built in {made.seconds:.0f} s).")
    else:
        progress.print(f"The engine '{name}' is ready ({what}); its environment was there already.")


@app.command()
def add(
    name: Name,
    python: Annotated[
        Path | None,
        typer.Option(help="Python interpreter of an environment with the engine.", show_default="toy: this one"),
    ] = None,
    family: Annotated[str, typer.Option(help=f"Engine family: {' or '.join(FAMILIES)}.")] = DEFAULT,
    env: Annotated[
        list[str], typer.Option("--env", metavar="NAME=VALUE", help="Default for an environment variable.")
    ] = [],  # noqa: B006
    settings: Settings = [],  # noqa: B006
) -> None:
    """Register an existing environment, such as one for a GPU, or the toy engine.

    The toy engine (--family toy) is part of tracereplay, for trying it out. It comes with a model.
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
    """List the engines registered on this machine."""
    engines = environments.list_engines()
    for sentence in unreadable():
        progress.print(sentence, markup=False, soft_wrap=True)
    if not engines:
        progress.print(f"There are no engines yet. Build one: tracereplay engine create v1 {EXAMPLE}")
        progress.print("Or try the toy, which needs nothing: tracereplay engine add toy --family toy")
        return
    table = Table()
    for title in ("name", "engine", "torch", "Python", "environment"):
        table.add_column(title, overflow="fold")
    for engine in engines:
        version, torch, python = (engine.versions.get(key) or "-" for key in (_package(engine), "torch", "python"))
        where = engine.environment.name if engine.environment else str(engine.python)
        table.add_row(engine.name, f"{engine.family} {version}", torch, python, where)
    report_console().print(table)
    progress.print(f"Environments are in {home() / 'environments'}.", style="dim", soft_wrap=True)


@app.command()
def doctor(
    name: Name,
    start: Annotated[bool, typer.Option(help="Also start the engine and generate one token.")] = True,
) -> None:
    """Check an engine and say what is wrong and how to fix it; exits with 4 if anything is wrong."""
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


@app.command("env")
def env_(name: Name) -> None:
    """Print what makes a shell run the engine's Python, with tracereplay: eval "$(tracereplay engine env NAME)".

    For programs that record themselves (tracereplay.recording); nothing is recorded by this alone.
    """
    engine = environments.load_engine(name)
    for key, value in shell_environment(engine).items():
        typer.echo(f"export {key}={shlex.quote(value)}")


@app.command()
def remove(name: Name) -> None:
    """Unregister an engine, and delete the environment built for it unless another engine uses it."""
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


def _show(finding: Diagnosis) -> None:
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
