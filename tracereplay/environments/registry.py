"""The engines registered on this machine: one JSON file each, written atomically.

They live in the user's cache directory, or under ``TRACEREPLAY_HOME``:

    HOME/engines/NAME.json            what a name stands for (this module)
    HOME/environments/DIGEST/         environments that were built here (create.py)
    HOME/models/NAME/                 the model of an engine whose family brings one
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracereplay.engines.family import Family
from tracereplay.engines.known import DEFAULT, EXAMPLE, FAMILIES, family_named
from tracereplay.errors import EngineNotFound, UsageError
from tracereplay.launch.home import home
from tracereplay.launch.process import process_environment

__all__ = [
    "Engine",
    "add_engine",
    "check_name",
    "forget_engine",
    "inspect_python",
    "list_engines",
    "load_engine",
    "register",
    "registered",
    "unreadable",
    "users_of",
    "utc_now",
    "write_json",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Engine:
    """A Python environment that can generate, and how to start it.

    ``env`` holds environment variables as defaults (a variable of the user's own wins; LD_PRELOAD is joined),
    ``settings`` engine arguments as defaults. ``environment`` is the directory if it was built here, and None
    for an interpreter of the user's own; ``python_request`` is the interpreter that was asked for, if one was.
    ``created`` is a UTC time, ISO 8601. ``family`` is the name of its family (`engines.known`). ``model`` is the
    checkpoint that it generates from unless another is given; None where it has none of its own.
    """

    name: str
    python: Path
    env: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    versions: Mapping[str, str | None] = field(default_factory=dict)
    recipe: str | None = None
    environment: Path | None = None
    python_request: str | None = None
    created: str = ""
    family: str = DEFAULT
    model: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values; ``from_json`` reads them back."""
        values = dataclasses.asdict(self)
        values["python"] = str(self.python)
        values |= {key: None if values[key] is None else str(values[key]) for key in ("environment", "model")}
        return {"schema": 1, **values, "requirements": list(self.requirements)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Engine:
        """What ``to_json`` wrote; keys of a later version are passed over."""
        known = {f.name for f in dataclasses.fields(cls)} & set(values)
        kept = {key: values[key] for key in known}
        kept["python"] = Path(kept["python"])
        kept["requirements"] = tuple(kept.get("requirements", ()))
        kept |= {key: Path(kept[key]) if kept.get(key) else None for key in ("environment", "model")}
        return cls(**kept)


def check_name(name: str) -> None:
    """Raise UsageError unless ``name`` can name an engine (and a file, on every system)."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name an engine: use 1 to 64 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit."
        )


def list_engines() -> list[Engine]:
    """All engines that can be read, by name."""
    return [found for found in _all() if isinstance(found, Engine)]


def unreadable() -> list[str]:
    """One sentence for each registration that cannot be read."""
    return [str(found) for found in _all() if isinstance(found, UsageError)]


def _all() -> list[Engine | UsageError]:
    """Every registration, or why it cannot be read."""
    found: list[Engine | UsageError] = []
    for path in sorted(_folder().glob("*.json")):
        if NAME.fullmatch(path.stem):
            try:
                found.append(_read(path))
            except UsageError as error:
                found.append(error)
    return found


def registered(name: str) -> Engine | None:
    """The engine of that name, or None if the name is free."""
    path = _file(name)
    return _read(path) if path.exists() else None


def load_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        EngineNotFound: there is none; the message names those that there are.
        UsageError: the name cannot be one, or its file is damaged.
    """
    check_name(name)
    engine = registered(name)
    if engine is not None:
        return engine
    others = [known.name for known in list_engines()]
    known = f"There are: {', '.join(others)}." if others else "There are none yet."
    raise EngineNotFound(
        f"There is no engine named '{name}'. {known} Build one with "
        f"'tracereplay engine create {name} {EXAMPLE}', or register an interpreter that has one with "
        f"'tracereplay engine add {name} --python PATH'."
    )


def register(engine: Engine) -> None:
    """Register an engine under its name, replacing any earlier registration."""
    check_name(engine.name)
    write_json(_file(engine.name), engine.to_json())


def add_engine(
    name: str,
    python: Path | None = None,
    env: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    family: str = DEFAULT,
) -> Engine:
    """Register an existing interpreter, such as the user's own GPU environment.

    Args:
        name: what the engine will be called.
        python: the interpreter; None is this one, for a family whose engines are a part of tracereplay.
        env, settings: see `Engine`.
        family: name of the engine's family. If it brings a model, that is written.

    Raises:
        UsageError: the name is taken or cannot be one, there is no such family, the interpreter is missing, does
            not run, or has no engine of that family.
    """
    known = family_named(family)
    check_name(name)
    if _file(name).exists():
        raise UsageError(
            f"An engine named '{name}' already exists. Choose another name, or remove it first with "
            f"'tracereplay engine remove {name}'."
        )
    python = _interpreter(python, known)
    versions = inspect_python(python, env or {}, known)
    if (unusable := known.why_unusable(python, versions)) is not None:
        raise UsageError(unusable)
    engine = Engine(
        name, python, dict(env or {}), dict(settings or {}), versions=versions, created=utc_now(), family=family,
        model=_written_model(name, known),
    )  # fmt: skip
    register(engine)
    return engine


def _interpreter(python: Path | None, family: Family) -> Path:
    if python is None and family.entry_points is not None:
        raise UsageError(
            f"The {family.name} family needs --python: the interpreter of an environment with {family.title}."
        )
    # Made absolute but not resolved: resolving the link of a virtual environment would lead out of it.
    return Path(os.path.abspath(Path(sys.executable) if python is None else python.expanduser()))


def _written_model(name: str, family: Family) -> Path | None:
    """The model that the family brings for an engine, after writing it; what it was before is replaced."""
    if not family.brings_model:
        return None
    directory = _models() / name
    family.write_model(directory)
    return directory


def forget_engine(name: str) -> Engine:
    """Remove an engine from the registry, with the model that was written for it, and return it.

    Its environment remains. So does a model that lies elsewhere, or that another engine has too.

    Raises:
        EngineNotFound: there is no such engine.
    """
    engine = load_engine(name)
    _file(name).unlink()
    model = engine.model
    if model is not None and model.parent == _models() and model not in {e.model for e in list_engines()}:
        shutil.rmtree(model, ignore_errors=True)
    return engine


def inspect_python(
    python: Path, env: Mapping[str, str], family: Family = FAMILIES[DEFAULT]
) -> dict[str, str | None]:
    """The versions that an interpreter has of Python and of what a family's engines need; None for what is absent.

    Raises:
        UsageError: the interpreter does not exist, does not run, or is older than Python 3.10.
    """
    command = [str(python), "-c", family.inspection]
    try:
        result = subprocess.run(
            command, env=process_environment(env), capture_output=True, text=True, timeout=120, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{python} does not run as a Python interpreter: {error}.") from error
    line = next((x for x in result.stdout.splitlines() if x.startswith("INSPECTED")), None)
    if line is None:
        raise UsageError(f"{python} does not run as a Python interpreter: {_last_line(result.stderr)}")
    found: dict[str, str | None] = json.loads(line.removeprefix("INSPECTED"))
    if tuple(int(x) for x in str(found["python"]).split(".")[:2]) < (3, 10):
        raise UsageError(f"{python} is Python {found['python']}; an engine needs Python 3.10 or later.")
    return found


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, even if the process or machine stops at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(values, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def utc_now() -> str:
    """The time now, to the second, in UTC, as ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def users_of(environment: Path, engines: Iterable[Engine] | None = None) -> list[str]:
    """The names of the engines that use an environment."""
    engines = list_engines() if engines is None else engines
    return [engine.name for engine in engines if engine.environment == environment]


def _models() -> Path:
    return home() / "models"


def _folder() -> Path:
    return home() / "engines"


def _file(name: str) -> Path:
    return _folder() / f"{name}.json"


def _read(path: Path) -> Engine:
    try:
        found = Engine.from_json(json.loads(path.read_text(encoding="utf-8")))
        if not _is_whole(found) or found.name != path.stem:
            raise ValueError("it is not an engine registration")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"The registration of the engine '{path.stem}' cannot be read ({error}). Delete {path} and create "
            "the engine again; an environment built for it is reused."
        ) from error


def _is_whole(engine: Engine) -> bool:
    """Whether each value is of the kind that its name says; a file may hold anything."""
    texts = (engine.name, engine.created, *engine.env, *engine.env.values(), *engine.settings, *engine.versions)
    maybe = (engine.recipe, engine.python_request, *engine.versions.values())
    return all(isinstance(text, str) for text in (*texts, *engine.requirements)) and all(
        text is None or isinstance(text, str) for text in maybe
    )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it printed nothing."
