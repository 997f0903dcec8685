"""Build an engine's environment with uv, once; an interrupted build is never used.

    nothing -> building -> ready
               (no ready.json)   ready.json, written last and atomically

The directory is named by a digest of what goes into it, so that two engines that ask for the same share one,
and it is built where it will stay, because the scripts of an environment hold its absolute path. A directory
without ``ready.json`` was interrupted: it is deleted and built again. A file lock beside it keeps two creations
apart; uv inherits the lock, so that a uv which outlives its killed parent still holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from tracereplay.engines.known import EXAMPLE
from tracereplay.environments import registry
from tracereplay.environments.fixups import Environment
from tracereplay.environments.recipes import Recipe, parse_requirements, recipe_for
from tracereplay.environments.registry import Engine
from tracereplay.errors import EnvironmentFailed, UsageError
from tracereplay.launch.home import home
from tracereplay.launch.uv import uv_binary, uv_environment

__all__ = ["READY", "Created", "create_engine", "is_ready", "remove_engine"]

READY = "ready.json"
Report = Callable[[str], None]

# What of uv's output is progress; the rest (package lists, advice on activating) is kept for failures only.
PHASES = ("Using CPython", "Resolved", "Downloading", "Downloaded", "Building", "Built", "Prepared", "Installed")


@dataclass(frozen=True)
class Created:
    """An engine, whether its environment was built for it, and in how many seconds."""

    engine: Engine
    built: bool
    seconds: float


@dataclass(frozen=True)
class EnvironmentSpec:
    """What an environment is made of; two equal specs give the same environment.

    ``python`` is what uv is asked for; ``python_key`` is what of it decides the result (the version, not where
    on this machine that interpreter lies); ``python_request`` is what the user asked for, if anything.
    """

    requirements: tuple[Requirement, ...]
    recipe: Recipe | None
    python: str
    python_key: str
    python_request: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The requirements as text."""
        return tuple(str(requirement) for requirement in self.requirements)

    @property
    def root(self) -> Path:
        """Where the environment lies: a readable name and a digest."""
        readable = str(self.requirements[0]).split(";")[0].split("@")[0].strip().replace("==", "-")
        safe = "".join(c if c.isalnum() or c in ".-_" else "_" for c in readable)[:48]
        return home() / "environments" / f"{safe}-{self.digest[:12]}"

    @property
    def digest(self) -> str:
        """Over everything that decides what is installed.

        Not over fix-ups, which are looked at again whenever an environment is used, nor over variables and
        settings, which are not in the environment.
        """
        recipe = self.recipe
        parts: list[Any] = [self.texts, self.python_key]
        if recipe is not None:
            parts += [recipe.overrides, recipe.requirements]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def create_engine(
    name: str,
    requirements: Sequence[str],
    *,
    python: str | None = None,
    rebuild: bool = False,
    uv: str | None = None,
    report: Report = lambda line: None,
) -> Created:
    """Build the environment that ``requirements`` describe, unless it exists, and register it as ``name``.

    Args:
        name: what the engine will be called.
        requirements: as for ``pip install``; a package that has recipes must be pinned to one version.
        python: the interpreter or version for uv; by default what the engine had, else this one's version
            if the recipe allows it.
        rebuild: delete an existing environment and build it again.
        uv: the uv program; by default the one that was installed with tracereplay.
        report: called with each line of progress.

    Raises:
        UsageError: a requirement cannot be read or is refused, or the name is already taken.
        EnvironmentFailed: uv failed, or this machine lacks something; the message says what to install.
    """
    registry.check_name(name)
    before = registry.registered(name)
    spec = _spec(requirements, python or (before.python_request if before else None))
    _check_free(name, before, spec)
    _check_libraries(spec)
    with _locked(spec.root, report) as lock:
        started = time.monotonic()
        built = rebuild or not is_ready(spec.root)
        if built:
            _build(spec, uv or uv_binary(), lock, report)
        _apply_fixups(spec, report)
        engine = _engine(name, spec)
        registry.register(engine)  # before the lock is let go, so that nobody finds the environment unused
        seconds = time.monotonic() - started
    if before is not None and before.environment != spec.root:
        _discard_unused(before.environment)
    return Created(engine, built, seconds)


def remove_engine(name: str) -> tuple[Engine, bool]:
    """Forget an engine; delete its environment if it was built here and certainly no other engine uses it.

    Returns:
        the engine, and whether its environment was deleted.

    Raises:
        EngineNotFound: there is no such engine.
    """
    engine = registry.forget_engine(name)
    return engine, _discard_unused(engine.environment)


def is_ready(root: Path) -> bool:
    """Whether an environment was finished, and its interpreter is still there."""
    return _marker(root) is not None and os.access(Environment(root).python, os.X_OK)


def _spec(texts: Sequence[str], python: str | None) -> EnvironmentSpec:
    if not texts:
        raise UsageError(f"Say what to install, as in 'tracereplay engine create v1 {EXAMPLE}'.")
    requirements = parse_requirements(texts)
    recipe = recipe_for(requirements)
    here = ".".join(str(n) for n in sys.version_info[:2])
    if python is not None:
        return EnvironmentSpec(requirements, recipe, python, python, python)
    if recipe is None or recipe.python.contains(Version(here)):
        return EnvironmentSpec(requirements, recipe, getattr(sys, "_base_executable", "") or sys.executable, here)
    return EnvironmentSpec(requirements, recipe, str(recipe.python), str(recipe.python))


def _check_free(name: str, before: Engine | None, spec: EnvironmentSpec) -> None:
    """Raise UsageError if the name is already taken by a different engine."""
    if before is None or before.requirements == spec.texts:
        return
    what = " ".join(before.requirements) or str(before.python)
    raise UsageError(
        f"An engine named '{name}' already exists ({what}). Choose another name, or remove it first with "
        f"'tracereplay engine remove {name}'."
    )


def _check_libraries(spec: EnvironmentSpec) -> None:
    """Before anything is downloaded: does this machine have what the engine cannot start without?"""
    libraries = spec.recipe.libraries if spec.recipe else ()
    missing = [library for library in libraries if library.missing(Path(sys.executable))]
    if missing:
        names = ", ".join(" or ".join(library.sonames) for library in missing)
        packages = " ".join(library.debian for library in missing)
        raise EnvironmentFailed(
            f"This machine lacks {names}, without which the engine cannot start. Install it (on Debian and "
            f"Ubuntu: apt-get install {packages}) and create the engine again."
        )


def _build(spec: EnvironmentSpec, uv: str, lock: int, report: Report) -> None:
    root = spec.root
    if root.exists():
        report(
            "Deleting the old environment" if is_ready(root) else "Deleting the remains of an interrupted creation"
        )
        _delete(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        _run_uv([uv, "venv", "--no-project", "--python", spec.python, str(root)], spec, lock, report)
        _run_uv([uv, "pip", "install", *_install_arguments(spec)], spec, lock, report)
        _apply_fixups(spec, report)
        _write_marker(spec, time.monotonic() - started)
    except Exception:
        if root.exists():
            _delete(root)
        raise


def _install_arguments(spec: EnvironmentSpec) -> list[str]:
    arguments = ["--python", str(Environment(spec.root).python)]
    extra: tuple[str, ...] = ()
    if spec.recipe is not None:
        overrides = spec.root / "overrides.txt"
        overrides.write_text("".join(f"{line}\n" for line in spec.recipe.overrides), encoding="utf-8")
        arguments += ["--overrides", str(overrides)]
        extra = spec.recipe.requirements
    return [*arguments, *spec.texts, *extra]


def _run_uv(command: list[str], spec: EnvironmentSpec, lock: int, report: Report) -> None:
    """Run uv, reporting its phases.

    Raises:
        EnvironmentFailed: it ended with an error; the message carries its last lines.
    """
    last: deque[str] = deque(maxlen=25)
    try:
        process = subprocess.Popen(
            command,
            cwd=spec.root.parent,
            env=uv_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=(lock,),
        )
    except OSError as error:
        raise EnvironmentFailed(f"uv could not be started ({command[0]}: {error}).") from error
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.rstrip())
            if line.startswith(PHASES):
                report(line.strip())
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode != 0:
        raise EnvironmentFailed(_failure(spec, process.returncode, "\n".join(last)))


def _failure(spec: EnvironmentSpec, code: int, last: str) -> str:
    what = " ".join(spec.texts)
    recipe = f"the recipe '{spec.recipe.name}'" if spec.recipe else "no recipe: none is known for it"
    return f"uv could not build an environment for {what} (exit {code}; {recipe}). It said:\n{last}"


def _apply_fixups(spec: EnvironmentSpec, report: Report) -> None:
    env = Environment(spec.root)
    for fixup in spec.recipe.fixups if spec.recipe else ():
        if fixup.needed(env):
            report(f"Fixing: {fixup.why}")
            fixup.apply(env)


def _engine(name: str, spec: EnvironmentSpec) -> Engine:
    marker = _marker(spec.root) or {}
    env = Environment(spec.root)
    recipe = spec.recipe
    variables = dict(recipe.env) if recipe else {}
    preloads = [str(path) for fixup in (recipe.fixups if recipe else ()) for path in fixup.preloads(env)]
    if preloads:
        variables["LD_PRELOAD"] = ":".join(preloads)
    return Engine(
        name=name,
        python=env.python,
        env=variables,
        settings=dict(recipe.settings) if recipe else {},
        requirements=spec.texts,
        versions=marker.get("versions", {}),
        recipe=recipe.name if recipe else None,
        environment=spec.root,
        python_request=spec.python_request,
        created=marker.get("created", ""),
    )


def _write_marker(spec: EnvironmentSpec, seconds: float) -> None:
    values = {
        "requirements": spec.texts,
        "recipe": spec.recipe.name if spec.recipe else None,
        "digest": spec.digest,
        "versions": registry.inspect_python(Environment(spec.root).python, {}),
        "created": registry.utc_now(),
        "seconds": round(seconds, 1),
    }
    registry.write_json(spec.root / READY, values)


def _marker(root: Path) -> dict[str, Any] | None:
    try:
        values = json.loads((root / READY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


@contextlib.contextmanager
def _locked(root: Path, report: Report) -> Iterator[int]:
    """Hold the lock of an environment; waits for another process that is building or deleting it."""
    root.parent.mkdir(parents=True, exist_ok=True)
    path = root.parent / f".{root.name}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("Waiting for another process that is creating the same environment")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _discard_unused(environment: Path | None) -> bool:
    """Delete an environment that was built here and that no engine uses any more."""
    if environment is None or environment.parent != home() / "environments":
        return False
    with _locked(environment, lambda line: None):
        # A registration that cannot be read may be of an engine that uses it.
        if registry.users_of(environment) or registry.unreadable() or not environment.exists():
            return False
        _delete(environment)
    return True


def _delete(root: Path) -> None:
    """Delete an environment, its marker first: a deletion cut short leaves nothing that looks ready."""
    (root / READY).unlink(missing_ok=True)
    shutil.rmtree(root)
