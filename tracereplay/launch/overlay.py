"""A directory for ``PYTHONPATH`` that brings tracereplay into an engine's environment.

It holds what the engine-side code needs and an engine lacks (msgpack, zstandard and xxhash, built for that
interpreter), a link to this installation of tracereplay, and the entry points by which the engine finds it.
The engine's own environment is never changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import tracereplay
from tracereplay.errors import EnvironmentFailed
from tracereplay.launch.home import home
from tracereplay.launch.release import our_version
from tracereplay.launch.uv import uv_binary, uv_environment

__all__ = ["declare", "overlay_for", "sealing_for"]

REQUIREMENTS = ("msgpack>=1.0.8", "zstandard>=0.22", "xxhash>=3.4")
SEALING = ("pyrage>=1.2", "cryptography>=42")
_ASK = "import sys, platform; print(sys.implementation.cache_tag, platform.system(), platform.machine())"
_METADATA = "Metadata-Version: 2.1\nName: tracereplay-guest\nVersion: {}\n"


def overlay_for(python: Path, entry_points: str) -> Path:
    """The overlay for an interpreter, built if missing.

    Args:
        python: the interpreter.
        entry_points: to declare, in the format of ``entry_points.txt``.

    Raises:
        EnvironmentFailed: the interpreter does not run, or the packages cannot be installed.
    """
    package = Path(tracereplay.__file__).resolve().parent

    def build(partial: Path) -> None:
        _install(partial, python, REQUIREMENTS, ["--no-deps"])
        declare(partial, package, entry_points)

    return _built("overlays", (_abi(python), str(package), our_version(), REQUIREMENTS, entry_points), build)


def sealing_for(python: Path) -> Path:
    """A folder with what an interpreter needs to seal and to open traces, built if missing.

    Why not in the overlay: few ask for it, and it is to come last on the path, not first (see `trace.sealed`).

    Raises:
        EnvironmentFailed: see `overlay_for`.
    """
    return _built("sealing", (_abi(python), SEALING), lambda partial: _install(partial, python, SEALING))


def _built(room: str, depends_on: tuple[object, ...], build: Callable[[Path], None]) -> Path:
    """The folder that ``build`` fills, made once for all that it depends on."""
    key = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:16]
    target = home() / room / key
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{key}.partial"))
        try:
            build(partial)
            partial.rename(target)
        except OSError as error:
            if not target.is_dir():  # otherwise another process built the same one first
                raise EnvironmentFailed(f"{target} could not be written: {error.strerror}.") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _abi(python: Path) -> str:
    try:
        done = subprocess.run([python, "-I", "-c", _ASK], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailed(f"The interpreter {python} does not run: {error}.") from error
    if done.returncode:
        raise EnvironmentFailed(f"The interpreter {python} does not run: {done.stderr.strip()}")
    return done.stdout.strip()


def _install(partial: Path, python: Path, requirements: Sequence[str], options: Sequence[str] = ()) -> None:
    command = [uv_binary(), "pip", "install", "--quiet", *options, "--python", str(python)]
    done = subprocess.run(
        [*command, "--target", str(partial), *requirements],
        env=uv_environment(os.environ), capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise EnvironmentFailed(
            f"The packages {', '.join(requirements)} could not be installed for {python}; uv said:\n{done.stderr}"
        )


def declare(folder: Path, package: Path, entry_points: str) -> None:
    """Links a package into a folder for ``PYTHONPATH``, with the entry points by which engines find it."""
    (folder / "tracereplay").symlink_to(package)
    info = folder / "tracereplay_guest-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(_METADATA.format(our_version()))
    (info / "entry_points.txt").write_text(entry_points)
