"""``engine env`` prints what a shell needs to run a program of one's own with an engine's Python."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from program import Program


def test_a_shell_takes_it(tracereplay: Program, home: Path) -> None:
    ended = tracereplay("engine", "env", "toy")
    assert ended.code == 0
    assert ended.out.splitlines() == [line for line in ended.out.splitlines() if line.startswith("export ")]
    said = subprocess.run(["bash", "-c", f'{ended.out}echo "$PATH"'], capture_output=True, text=True, check=True)
    assert said.stdout.split(":")[0] == str(home)
    assert shlex.split(ended.out)[0] == "export"


def test_an_engine_that_is_not_there_is_named(tracereplay: Program) -> None:
    ended = tracereplay("engine", "env", "nobody")
    assert (ended.code, ended.out) == (2, "")
    assert "nobody" in ended.err
