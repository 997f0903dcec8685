"""Compiles faulty_disk.c, a disk that fails below Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["faulty_disk"]

SOURCE = Path(__file__).with_suffix(".c")


def faulty_disk(folder: Path) -> Path:
    """The library to preload, compiled into ``folder``; without a compiler the test is skipped, but not in CI."""
    if shutil.which("gcc") is None and not os.environ.get("CI"):
        pytest.skip("there is no gcc")
    library = folder / "faulty_disk.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library
