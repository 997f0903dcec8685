"""Changes to an installed environment without which its engine would not start on this machine.

A fix-up answers three questions about an environment:

    needed(env)    would the engine fail without it, as the environment is now?
    apply(env)     make the change; doing it twice changes nothing more
    preloads(env)  the shared objects that LD_PRELOAD must name from now on

On a machine that does not need it, ``needed`` is false and nothing is touched. Which engine gets which fix-up,
and why, is data (``recipes.toml``); the kinds are listed in ``KINDS``.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tracereplay.environments import elf
from tracereplay.errors import EnvironmentFailed

__all__ = [
    "INSTALLER",
    "KINDS",
    "Alias",
    "Environment",
    "Fixup",
    "Preload",
    "StubSymbol",
    "SystemLibrary",
    "WeakVersion",
    "locate",
]

INSTALLER = "tracereplay"  # by which a distribution that we made up is known
# Loads the first soname that can be loaded and prints its path: only the loader knows where it looks.
LOCATE = """
import ctypes, sys
for name in sys.argv[1:]:
    try:
        ctypes.CDLL(name)
    except OSError:
        continue
    stem = "/" + name.split(".so")[0]
    paths = [line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if stem in line]
    print(next((p for p in paths if p.rsplit("/", 1)[1].startswith(stem[1:] + ".so")), name))
    break
"""


@dataclass(frozen=True)
class Environment:
    """A Python environment on disk."""

    root: Path

    @property
    def python(self) -> Path:
        """Its interpreter; a link, which must not be resolved (the link is what makes it this environment)."""
        return self.root / "bin" / "python"

    @property
    def extras(self) -> Path:
        """Where tracereplay puts what it makes for this environment."""
        return self.root / "lib" / "tracereplay"

    def package_file(self, name: str) -> Path:
        """A file of an installed package, by its path from site-packages; it may be absent."""
        found = sorted(self.root.glob(f"lib/python3*/site-packages/{name}"))
        return found[0] if found else self.root / "lib" / "python3" / "site-packages" / name


class Fixup(Protocol):
    """One change; see the module's description."""

    @property
    def why(self) -> str:
        """The reason, as one sentence."""

    def needed(self, env: Environment) -> bool:
        """Whether the engine would fail without it, as the environment is now."""

    def apply(self, env: Environment) -> None:
        """Make the change.

        Raises:
            EnvironmentFailed: it cannot be made here; the message says what to install.
        """

    def preloads(self, env: Environment) -> tuple[Path, ...]:
        """The shared objects that LD_PRELOAD must name."""


@dataclass(frozen=True)
class SystemLibrary:
    """A shared library that the operating system must bring: any one of ``sonames``."""

    sonames: tuple[str, ...]
    debian: str

    def missing(self, python: Path) -> bool:
        """Whether none of the names can be loaded by that interpreter."""
        return locate(python, self.sonames) is None


@dataclass(frozen=True)
class WeakVersion:
    """Let ``file`` load although this machine's ``soname`` lacks the symbol version ``version``."""

    why: str
    file: str
    soname: str
    version: str

    def needed(self, env: Environment) -> bool:
        path = env.package_file(self.file)
        if not path.exists() or not _lacks(env.python, self.soname, self.version):
            return False
        return any(need.version == self.version and not need.weak for need in elf.version_needs(path))

    def apply(self, env: Environment) -> None:
        elf.weaken(env.package_file(self.file), self.version)

    def preloads(self, env: Environment) -> tuple[Path, ...]:
        return ()


@dataclass(frozen=True)
class StubSymbol:
    """Stand in for a function that this machine's ``soname`` lacks, with one that does nothing."""

    why: str
    symbol: str
    soname: str
    version: str

    def needed(self, env: Environment) -> bool:
        return not self._path(env).exists() and _lacks(env.python, self.soname, self.version)

    def apply(self, env: Environment) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise EnvironmentFailed(
                f"A small stand-in library must be compiled here, and there is no C compiler. {self.why} "
                "Install one (Debian: apt-get install gcc libc6-dev) and create the engine again."
            )
        path = self._path(env)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        command = [compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(partial)]
        made = subprocess.run(command, input=f"void {self.symbol}(void) {{}}\n", capture_output=True, text=True)
        if made.returncode != 0:
            raise EnvironmentFailed(f"Compiling a stand-in for {self.symbol} failed: {made.stderr.strip()}")
        partial.replace(path)

    def preloads(self, env: Environment) -> tuple[Path, ...]:
        path = self._path(env)
        return (path,) if path.exists() else ()

    def _path(self, env: Environment) -> Path:
        return env.extras / f"lib{self.symbol.strip('_')}.so"


@dataclass(frozen=True)
class Preload:
    """Name a library in LD_PRELOAD: a ``file`` of the environment, or the first of ``sonames`` that loads."""

    why: str
    file: str = ""
    sonames: tuple[str, ...] = ()

    def needed(self, env: Environment) -> bool:
        return not self.preloads(env)

    def apply(self, env: Environment) -> None:
        wanted = self.file or " or ".join(self.sonames)
        raise EnvironmentFailed(f"{wanted} was not found in {env.root} or on this machine. {self.why}")

    def preloads(self, env: Environment) -> tuple[Path, ...]:
        if self.file:
            path = env.root / self.file
            return (path,) if path.exists() else ()
        found = locate(env.python, self.sonames)
        return (found,) if found else ()


@dataclass(frozen=True)
class Alias:
    """Let the distribution ``package`` be found as ``name`` too, with ``suffix`` behind its version."""

    why: str
    name: str
    package: str
    suffix: str = ""

    def needed(self, env: Environment) -> bool:
        version = self._version(env)
        there = _infos(env, self.name)
        if version is None or not all(map(_ours, there)):
            return False
        return _versions(env, self.name) != [version + self.suffix]

    def apply(self, env: Environment) -> None:
        version = self._version(env)
        if version is None:
            return
        for old in filter(_ours, _infos(env, self.name)):  # of an earlier version
            shutil.rmtree(old)
        text = f"Metadata-Version: 2.1\nName: {self.name}\nVersion: {version}{self.suffix}\n"
        made = _infos(env, self.package)[0].with_name(f"{self.name}-{version}{self.suffix}.dist-info")
        partial = made.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for file, content in (("METADATA", text), ("INSTALLER", INSTALLER), ("RECORD", "")):
            (partial / file).write_text(content)
        partial.rename(made)

    def preloads(self, env: Environment) -> tuple[Path, ...]:
        return ()

    def _version(self, env: Environment) -> str | None:
        found = _versions(env, self.package)
        return found[0] if found else None


def _infos(env: Environment, name: str) -> list[Path]:
    """The folders that say that a distribution is installed."""
    safe = name.replace("-", "_")
    return sorted(env.root.glob(f"lib/python3*/site-packages/{safe}-*.dist-info"))


def _ours(info: Path) -> bool:
    """Whether a distribution was made up here."""
    try:
        return (info / "INSTALLER").read_text() == INSTALLER
    except OSError:
        return False


def _versions(env: Environment, name: str) -> list[str]:
    return [path.name.removesuffix(".dist-info").rpartition("-")[2] for path in _infos(env, name)]


KINDS: dict[str, type[WeakVersion] | type[StubSymbol] | type[Preload] | type[Alias]] = {
    "weak-version": WeakVersion,
    "stub-symbol": StubSymbol,
    "preload": Preload,
    "alias": Alias,
}


def locate(python: Path, sonames: tuple[str, ...]) -> Path | None:
    """The path of the first of ``sonames`` that ``python`` can load, or None."""
    result = subprocess.run([str(python), "-I", "-c", LOCATE, *sonames], capture_output=True, text=True)
    text = result.stdout.strip()
    return Path(text) if text else None


def _lacks(python: Path, soname: str, version: str) -> bool:
    """Whether the library that ``python`` would load is there and does not define the symbol version."""
    path = locate(python, (soname,))
    return path is not None and path.exists() and version.encode() + b"\0" not in path.read_bytes()
