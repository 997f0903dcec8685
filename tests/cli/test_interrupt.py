"""Ctrl-C and a closed pipe, at a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tracereplay.trace import open_trace

PROGRAM = "from tracereplay.cli.main import main; main()"  # as the installed program


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_the_engine_and_keeps_the_trace(
    model: Path, prompts: Path, tmp_path: Path, number: int, code: int
) -> None:
    out, hangs = tmp_path / "out.trace", tmp_path / "pids"
    words = ["record", "--engine", "toy", "--model", model, "--prompts", prompts, "-o", out]
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words), "--set", f"hangs={hangs}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(hangs.exists)
        engine, worker = map(int, hangs.read_text().split())
        os.kill(program.pid, number)
        time.sleep(0.2)
        os.kill(program.pid, number)  # impatience must not leave the engine behind
        _, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == code, err
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert err.splitlines()[-1] == "Interrupted."
    wait_until(lambda: not alive(engine) and not alive(worker), 5)
    trace = open_trace(out)
    assert not trace.complete
    assert len(trace.steps("record")) > 1


def test_a_reader_that_goes_away_is_no_verdict(golden: Path) -> None:
    words = ["compare", str(golden), str(golden), "--json", "-"]
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    program.stdout.close()
    _, err = program.communicate(timeout=60)
    assert "Traceback" not in err
    assert program.returncode == 141
