"""The releases of a package between two versions, as uv would install them here.

uv has no command that lists releases. It is asked for the newest below the one before, again and again, so that
whatever uv was told (an index, a folder of wheels, this Python) is respected.
"""

from __future__ import annotations

import os
import subprocess

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from tracereplay.errors import EnvironmentFailed, UsageError
from tracereplay.launch.uv import uv_binary, uv_environment

__all__ = ["check_order", "read_version", "releases_between"]

MOST = 200  # releases; more would be a mistake in the range


def read_version(text: str) -> Version:
    """The version.

    Raises:
        UsageError: it is none.
    """
    try:
        return Version(text)
    except InvalidVersion as error:
        raise UsageError(f"{text!r} is not a version such as 0.27.1.") from error


def check_order(good: str, bad: str) -> None:
    """Raises UsageError unless ``good`` is older than ``bad``."""
    if read_version(good) >= read_version(bad):
        raise UsageError(
            f"--good {good} is not older than --bad {bad}. The first bad version is looked for after a good one; "
            "if the newer one is good, exchange them and read 'good' as 'broken'."
        )


def releases_between(package: str, oldest: str, newest: str, *, uv: str | None = None) -> list[str]:
    """Versions from ``oldest`` to ``newest``, both included if they exist, oldest first.

    Raises:
        UsageError: the package's name or a version cannot be one.
        EnvironmentFailed: uv finds nothing, or cannot reach where packages are.
    """
    found: list[str] = []
    limit = f"<={read_version(newest)}"
    while len(found) < MOST and not (found and read_version(found[-1]) <= read_version(oldest)):
        newer = _newest(package, f">={read_version(oldest)},{limit}", uv or uv_binary(), first=not found)
        if newer is None:
            break
        found.append(newer)
        limit = f"<{newer}"
    return found[::-1]


def _newest(package: str, specifiers: str, uv: str, *, first: bool) -> str | None:
    """The newest release that fits, None if there is none (the first time that is an error)."""
    wanted = f"{_name(package)}{specifiers}"
    command = [uv, "pip", "compile", "-", "--no-deps", "--no-header", "--no-annotate", "--quiet"]
    done = subprocess.run(command, input=wanted, env=uv_environment(os.environ), capture_output=True, text=True)
    lines = [line.strip() for line in done.stdout.splitlines() if "==" in line]
    if done.returncode == 0 and lines:
        return lines[-1].split("==")[1].split(";")[0].strip()
    if not first and "No solution found" in done.stderr:
        return None
    raise EnvironmentFailed(
        f"uv found no release of {wanted}. Without a network, list the versions to try with --versions. It said:\n"
        f"{done.stderr.strip()}"
    )


def _name(package: str) -> str:
    try:
        requirement = Requirement(package)
    except InvalidRequirement as error:
        raise UsageError(f"--package {package!r} is not the name of a package.") from error
    if requirement.specifier or requirement.url:
        raise UsageError(f"--package {package!r} must be only a name; versions are given with --good and --bad.")
    return canonicalize_name(requirement.name)
