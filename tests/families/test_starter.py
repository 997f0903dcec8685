"""A worker knows as soon as its pipe ends whether its engine was killed, or only wants it to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

# Its files take a while to close: most of them lie behind the pipe, and have memory to give back.
ENGINE = """
import os, sys
from tracereplay.engines.vllm.guest.starter import Starter
theirs, ours = os.pipe()
if os.fork() == 0:
    os.close(ours)
    starter = Starter()
    os.write(1, b"ready\\n")
    os.read(theirs, 1)
    os.write(1, f"{starter.gone()}\\n".encode())
    os._exit(0)
os.close(theirs)
files = [os.memfd_create("weights") for _ in range(8)]
for file in files:
    os.write(file, bytes(8 << 20))
sys.stdin.readline()
os.close(ours)
sys.stdin.readline()
"""


@pytest.mark.parametrize("killed", [True, False])
def test_a_worker_sees_whether_its_engine_was_killed(killed: bool) -> None:
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as engine:
            assert engine.stdin is not None
            assert engine.stdout is not None
            assert engine.stdout.readline() == "ready\n"
            if killed:
                os.kill(engine.pid, signal.SIGKILL)
            else:
                engine.stdin.write("end\n")
                engine.stdin.flush()
            assert engine.stdout.readline() == f"{killed}\n"
            engine.stdin.close()
