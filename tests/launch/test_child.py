"""A command of the user's and its polite parent, with real processes and real signals."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tracereplay.launch.descendants import SHARED

HERE = Path(__file__).parent
PARENT = """
import os, sys
from tracereplay.launch import child
child.GRACE = 0.5
with child.Child(sys.argv[1:], os.environ) as running:
    code = running.wait()
    running.settle(lambda: 0)
sys.exit(code if code >= 0 else 128 - code)
"""


class Parent:
    """A process that runs the command politely."""

    def __init__(self, log: Path, seconds: float = 30, code: int = 0) -> None:
        self._log = log
        command = [sys.executable, str(HERE / "signal_support.py"), str(log), str(seconds), str(code)]
        # In a group of its own, so that a test can signal all of it.
        self.process = subprocess.Popen([sys.executable, "-c", PARENT, *command], start_new_session=True)

    def said(self) -> list[list[str]]:
        return [line.split() for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def heard(self) -> list[str]:
        return [words[1] for words in self.said() if words[0] == "got"]

    def has(self, word: str) -> str:
        """What it says of ``word``, as soon as it does."""
        wait_until(lambda: any(words[0] == word for words in self.said()))
        return next(words[1] for words in self.said() if words[0] == word)


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Parent]]:
    started: list[Parent] = []

    def begin(seconds: float = 30, code: int = 0) -> Parent:
        started.append(Parent(tmp_path / f"{len(started)}.log", seconds, code))
        return started[-1]

    yield begin
    for parent in started:
        parent.process.kill()
        parent.process.wait()
        for words in parent.said():
            if words[0] in ("command", "orphan") and runs(words[1]):
                os.kill(int(words[1]), signal.SIGKILL)
            if words[0] == "memory":
                (SHARED / words[1]).unlink(missing_ok=True)


def test_nothing_is_left_of_a_command_that_left_something(start: Callable[..., Parent]) -> None:
    parent = start(seconds=1.5, code=7)
    orphan, memory = parent.has("orphan"), SHARED / parent.has("memory")
    assert memory.exists()
    assert parent.process.wait(timeout=20) == 7
    assert not runs(orphan)
    assert not memory.exists()


def test_each_signal_is_passed_on_once_and_waited_for(start: Callable[..., Parent]) -> None:
    parent = start(seconds=6, code=3)  # longer than four signals take on a busy machine
    parent.has("command")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        before = len(parent.heard())
        parent.process.send_signal(number)
        wait_until(lambda before=before: len(parent.heard()) > before)
    assert parent.process.wait(timeout=20) == 3
    assert parent.heard() == ["SIGTERM", "SIGINT", "SIGHUP", "SIGTERM"]


def test_a_signal_to_the_whole_group_reaches_the_command_once(start: Callable[..., Parent]) -> None:
    """As `timeout` sends it, and a terminal."""
    parent = start(seconds=2)
    parent.has("command")
    os.killpg(parent.process.pid, signal.SIGTERM)
    assert parent.process.wait(timeout=20) == 0
    assert parent.heard() == ["SIGTERM"]


def test_a_command_that_a_signal_ends_is_told_by_its_code(start: Callable[..., Parent]) -> None:
    parent = start()
    os.kill(int(parent.has("command")), signal.SIGKILL)
    assert parent.process.wait(timeout=20) == 128 + signal.SIGKILL
    assert not runs(parent.has("orphan"))


def test_a_parent_that_is_killed_asks_the_command_to_end(start: Callable[..., Parent]) -> None:
    parent = start(seconds=2)
    command, orphan, memory = parent.has("command"), parent.has("orphan"), SHARED / parent.has("memory")
    time.sleep(1)  # it has looked what there is
    parent.process.kill()
    wait_until(lambda: parent.heard() == ["SIGTERM"])
    wait_until(lambda: not runs(command))
    wait_until(lambda: not runs(orphan) and not memory.exists())


def test_other_children_of_the_process_are_left_alone(tmp_path: Path) -> None:
    program = """
import subprocess, sys
other = subprocess.Popen(["sleep", "60"])
from tracereplay.launch.child import Child
with Child(["true"], {"PATH": "/bin:/usr/bin"}) as running:
    assert running.wait() == 0
    running.settle(lambda: 0)
assert other.poll() is None
other.kill()
assert other.wait() == -9
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_terminal_belongs_to_the_command_and_then_comes_back() -> None:
    """Ctrl-C goes to the command alone, and it may read what is typed."""
    program = PARENT + "\n"
    # It waits for the signal blocked: a handler may miss one that comes just before `input` reads.
    inner = (
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {2}); print('ready', flush=True); "
        "signal.sigwait({2}); print('heard', flush=True); print('in', input(), 1 + len(signal.sigpending()))"
    )
    outer = program.replace("sys.exit(code", "print('out', input()); sys.exit(code")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", outer, sys.executable, "-c", inner])
    said = b""
    try:
        end = time.monotonic() + 40
        typed = iter([(b"ready", b"\x03"), (b"heard", b"one\n"), (b"in one 1", b"two\n"), (b"out two", b"")])
        awaited, answer = next(typed)
        while answer or awaited not in said:
            assert time.monotonic() < end, said
            if select.select([terminal], [], [], 0.2)[0]:
                said += os.read(terminal, 1024)
            if answer and awaited in said:
                os.write(terminal, answer)
                awaited, answer = next(typed)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        os.close(terminal)


def test_a_semaphore_of_a_command_that_was_killed_is_removed(tmp_path: Path) -> None:
    """Python's own semaphores are mapped under another name than they get."""
    name = tmp_path / "name"
    program = (
        "import multiprocessing, os, sys, time; lock = multiprocessing.get_context('spawn').Lock(); "
        "open(sys.argv[1], 'w').write(lock._semlock.name); time.sleep(1.5); "
        "os.kill(multiprocessing.resource_tracker._resource_tracker._pid, 9); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", PARENT, sys.executable, "-c", program, str(name)], timeout=60)
    assert done.returncode == 137
    assert not (SHARED / f"sem.{name.read_text()[1:]}").exists()
