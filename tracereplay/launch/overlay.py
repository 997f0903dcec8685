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
from pathlib import Path

import tracereplay
from tracereplay.errors import EnvironmentFailed
from tracereplay.launch.home import home
from tracereplay.launch.uv import uv_binary, uv_environment

__all__ = ["overlay_for"]

REQUIREMENTS = ("msgpack>=1.0.8", "zstandard>=0.22", "xxhash>=3.4")
_ASK = "import sys, platform; print(sys.implementation.cache_tag, platform.system(), platform.machine())"
_METADATA = "Metadata-Version: 2.1\nName: tracereplay-guest\nVersion: 0\n"


def overlay_for(python: Path, entry_points: str) -> Path:
    """The overlay for an interpreter, built if missing.

    Args:
        python: the interpreter.
        entry_points: to declare, in the format of ``entry_points.txt``.

    Raises:
        EnvironmentFailed: the interpreter does not run, or the packages cannot be installed.
    """
    package = Path(tracereplay.__file__).resolve().parent
    key = hashlib.sha256(repr((_abi(python), str(package), REQUIREMENTS, entry_points)).encode()).hexdigest()[:16]
    target = home() / "overlays" / key
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{key}.partial"))
        try:
            _build(partial, python, package, entry_points)
            partial.rename(target)
        except OSError as error:
            if not target.is_dir():  # otherwise another process built the same overlay first
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


def _build(partial: Path, python: Path, package: Path, entry_points: str) -> None:
    command = [uv_binary(), "pip", "install", "--quiet", "--no-deps", "--python", str(python)]
    done = subprocess.run(
        [*command, "--target", str(partial), *REQUIREMENTS],
        env=uv_environment(os.environ), capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise EnvironmentFailed(
            f"The packages {', '.join(REQUIREMENTS)} could not be installed for {python}; uv said:\n{done.stderr}"
        )
    (partial / "tracereplay").symlink_to(package)
    info = partial / "tracereplay_guest-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(_METADATA)
    (info / "entry_points.txt").write_text(entry_points)
