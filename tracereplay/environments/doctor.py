"""Find out why an engine does not work, and say what to do about it.

The checks go from the ground up: interpreter, environment variables, what the recipe requires of the machine,
shared libraries, torch, and finally the engine itself, which generates one token from a dummy model without
weights. Each is a function that yields diagnoses; after one that finds an error the later ones would only repeat
it, so they are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tracereplay.engines.known import DEFAULT, family_named
from tracereplay.environments.create import READY, is_ready
from tracereplay.environments.fixups import Environment
from tracereplay.environments.recipes import Recipe, known_recipes
from tracereplay.environments.registry import Engine, inspect_python
from tracereplay.errors import TracereplayError, UsageError
from tracereplay.launch import EngineProcess
from tracereplay.launch.home import home
from tracereplay.launch.process import process_environment

__all__ = ["CHECKS", "Check", "Diagnosis", "examine", "start_engine"]

LOCATE = """
import importlib.util, json, pathlib, site, sys
package = list(importlib.util.find_spec(sys.argv[1]).submodule_search_locations)[0]
folders = [pathlib.Path(p) for p in site.getsitepackages()]
names = {f.name for folder in folders for f in folder.rglob("lib*.so*")}
names |= {f.name for f in pathlib.Path(sys.prefix, "lib").glob("lib*.so*")}
print("FOUND" + json.dumps({"package": package, "bundled": sorted(names)}))
"""
IMPORT_TORCH = """
import torch
print("TORCH", torch.__version__, torch.cuda.device_count() if torch.cuda.is_available() else 0)
"""


@dataclass(frozen=True)
class Diagnosis:
    """The result of one check: its level, what was found, and what to do about it."""

    level: Literal["ok", "warning", "error"]
    what: str
    do: str = ""


Check = Callable[[Engine], Iterable[Diagnosis]]


def examine(engine: Engine, checks: Iterable[Check] | None = None) -> Iterator[Diagnosis]:
    """Runs the checks in order, yielding each diagnosis as it is made; the last check starts the engine.

    Faults of the engine are diagnoses and raise nothing.
    """
    for check in CHECKS if checks is None else checks:
        failed = False
        for diagnosis in check(engine):
            failed = failed or diagnosis.level == "error"
            yield diagnosis
        if failed:
            return


def check_interpreter(engine: Engine) -> Iterator[Diagnosis]:
    """Is there a finished environment with an interpreter that runs, and is the engine in it?"""
    if engine.environment is not None and not is_ready(engine.environment):
        missing = "is gone" if not engine.environment.exists() else f"was not finished (no {READY})"
        yield Diagnosis("error", f"The environment {engine.environment} {missing}.", _again(engine))
        return
    family = family_named(engine.family)
    try:
        versions = inspect_python(engine.python, engine.env, family)
    except UsageError as error:
        yield Diagnosis("error", str(error), _again(engine))
        return
    if (unusable := family.why_unusable(engine.python, versions)) is not None:
        yield Diagnosis("error", unusable, _again(engine))
        return
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield Diagnosis("ok", f"The interpreter runs: {known}.")
    changed = [n for n, v in versions.items() if engine.versions.get(n) not in (None, v)]
    for name in changed:
        yield Diagnosis(
            "warning",
            f"{name} is {versions[name]} now and was {engine.versions[name]} when the engine was registered.",
            "Remove the engine and register it again, so that traces name the right version.",
        )


def check_variables(engine: Engine) -> Iterator[Diagnosis]:
    """Does one of the user's environment variables override the engine's?"""
    for name, value in engine.env.items():
        own = os.environ.get(name)
        if own not in (None, value) and name != "LD_PRELOAD":
            yield Diagnosis(
                "warning",
                f"{name} is {own!r} in your shell, which overrides the engine's {value!r}.",
                f"If that is not intended: unset {name}.",
            )


def check_recipe(engine: Engine) -> Iterator[Diagnosis]:
    """Does the machine have what the recipe requires, and are the necessary fix-ups in place?"""
    recipe = next((recipe for recipe in known_recipes() if recipe.name == engine.recipe), None)
    if recipe is None or engine.environment is None:
        return
    wrong = list(_open_points(engine, recipe, Environment(engine.environment)))
    yield from wrong or [Diagnosis("ok", f"Everything that the recipe '{recipe.name}' requires is present.")]


def _open_points(engine: Engine, recipe: Recipe, env: Environment) -> Iterator[Diagnosis]:
    for library in recipe.libraries:
        if library.missing(engine.python):
            install = f"Install it (Debian and Ubuntu: apt-get install {library.debian}) and try again."
            yield Diagnosis("error", f"This machine lacks {' or '.join(library.sonames)}.", install)
    for fixup in recipe.fixups:
        if fixup.needed(env):
            yield Diagnosis("error", f"A fix-up is not in place. {fixup.why}", _again(engine))
    for path in engine.env.get("LD_PRELOAD", "").split(":"):
        if path and not Path(path).exists():
            yield Diagnosis("error", f"{path}, which should be preloaded, is missing.", _again(engine))


def check_libraries(engine: Engine) -> Iterator[Diagnosis]:
    """Do the engine's compiled parts find every library? Asked of ldd, which runs none of their code."""
    family = family_named(engine.family)
    if family.compiled is None:
        return
    ldd = shutil.which("ldd")
    found = _ask(engine, LOCATE, "FOUND", family.compiled.package)
    if ldd is None or found is None:
        yield Diagnosis("warning", f"{family.title}'s shared libraries were not checked (no ldd).")
        return
    places = json.loads(found)
    objects = sorted(Path(places["package"]).glob("*.so"))
    bundled = set(places["bundled"])
    missing: set[str] = set()
    for path in objects:
        result = subprocess.run(
            [ldd, str(path)], env=process_environment(engine.env), capture_output=True, text=True
        )
        missing |= set(_missing(result.stdout + result.stderr, bundled))
    for what in sorted(missing):
        yield Diagnosis(
            "error", f"{family.title}'s compiled part cannot be loaded: {what}.", _remedy(engine, what)
        )
    if not missing:
        yield Diagnosis("ok", f"{family.title}'s {len(objects)} shared libraries find everything they need.")


def check_torch(engine: Engine) -> Iterator[Diagnosis]:
    """Can torch be imported, and does it see a GPU?"""
    if family_named(engine.family).compiled is None:
        return
    result = _python(engine, IMPORT_TORCH)
    line = _line(result.stdout, "TORCH")
    if line is None:
        said = _tail(result.stderr) or f"exit {result.returncode}"
        yield Diagnosis("error", f"torch cannot be imported: {said}", _remedy(engine, said))
        return
    version, devices = line.split()
    seen = f"{devices} GPU{'s' if devices != '1' else ''} seen" if devices != "0" else "no GPU seen"
    yield Diagnosis("ok", f"torch {version} can be imported ({seen}).")


def start_engine(engine: Engine) -> Iterator[Diagnosis]:
    """Does the engine start and generate one token? The model is a dummy without weights."""
    log = home() / "logs" / f"doctor-{engine.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)  # only the newest examination's is kept
    with tempfile.TemporaryDirectory(prefix="tracereplay-doctor-") as folder:
        try:
            model = Path(folder) / "model"
            settings = family_named(engine.family).write_model(model)
            token = _generate(engine, model, settings, log)
        except TracereplayError as error:
            said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            what = "\n".join([str(error), *getattr(error, "last_lines", "").splitlines()])
            yield Diagnosis("error", what, f"{_remedy(engine, what, said)} Its full output is in {log}.")
            return
    yield Diagnosis("ok", f"The engine starts and generated one token from a dummy model (token {token}).")


CHECKS: tuple[Check, ...] = (
    check_interpreter,
    check_variables,
    check_recipe,
    check_libraries,
    check_torch,
    start_engine,
)


def _generate(engine: Engine, model: Path, settings: Mapping[str, Any], log: Path) -> int:
    prompt = {"prompt_token_ids": [3, 4, 5, 6], "sampling": {"max_tokens": 1, "temperature": 0.0}}
    with EngineProcess(engine, model=model, settings=settings, log=log) as process:
        return int(process.generate([prompt])["requests"][0]["token_ids"][0])


def _again(engine: Engine) -> str:
    """How to recreate the engine."""
    if engine.environment is None:
        how = "--python PATH" if engine.family == DEFAULT else f"--family {engine.family}"
        return (
            f"Repair the environment of {engine.python}, or 'tracereplay engine remove {engine.name}' and "
            f"'tracereplay engine add {engine.name} {how}'."
        )
    return f"Run 'tracereplay engine create {engine.name} {' '.join(engine.requirements)} --rebuild'."


def _remedy(engine: Engine, *said: str) -> str:
    """What to do about an engine's messages: its last lines first, then its whole log."""
    compiled = family_named(engine.family).compiled
    for text in said:
        for pattern, remedy in () if compiled is None else compiled.remedies:
            if re.search(pattern, text):
                again = _again(engine).removesuffix(".")
                return remedy.format(again=again[0].lower() + again[1:], python=engine.python)
    return "This failure is not a known one; check the engine's own message above first, then its settings."


def _missing(text: str, bundled: set[str]) -> Iterator[str]:
    """What ldd did not find, leaving out libraries that torch and others bundle and load first."""
    for library in re.findall(r"^\s*(\S+) => not found", text, re.MULTILINE):
        if library not in bundled:
            yield f"{library} is not on this machine"
    for version in re.findall(r"(?<!weak )version `(\S+)' not found", text):
        yield f"version `{version}' not found in this machine's libraries"


def _ask(engine: Engine, code: str, word: str, *arguments: str) -> str | None:
    return _line(_python(engine, code, *arguments).stdout, word)


def _python(engine: Engine, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(engine.python), "-c", code, *arguments]
    try:
        return subprocess.run(
            command, env=process_environment(engine.env), capture_output=True, text=True, timeout=300, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _line(text: str, word: str) -> str | None:
    return next((line.removeprefix(word) for line in text.splitlines() if line.startswith(word)), None)


def _tail(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
