"""A folder with a stranger's files is no place to import from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracereplay.interpreter import SAFE, module_command

CHILD = """
import multiprocessing, sys, json
def other(): import json, torch_of_a_stranger
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=other)
    process.start()
    process.join()
    print(__spec__.name, process.exitcode, sys.argv[1:])
"""


@pytest.mark.parametrize("name", ["runpy", "json", "multiprocessing", "tracereplay"])
def test_no_process_of_ours_imports_what_lies_in_the_working_directory(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    for module in (name, "torch_of_a_stranger"):
        (folder / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    library = tmp_path / "library"
    library.mkdir()
    (library / "asked_for.py").write_text(CHILD)
    done = subprocess.run(
        module_command(sys.executable, "asked_for", "an argument"), cwd=folder, capture_output=True, text=True,
        env={**os.environ, **SAFE, "PYTHONPATH": str(library)},
    )  # fmt: skip
    assert not (tmp_path / "ran").exists(), done.stderr
    # As with python -m: the module has its name, by which the processes that it spawns find it.
    assert done.stdout == "asked_for 1 ['an argument']\n", done.stderr
    assert "No module named 'torch_of_a_stranger'" in done.stderr
