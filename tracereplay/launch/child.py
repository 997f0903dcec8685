"""A user's command as a child process: signals, terminal and cleanup.

Signals for the command are forwarded, each once. When it has ended, the processes it left behind are ended too,
except for the writers of the recording, which finish first.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from tracereplay.launch.descendants import Descendants, end_with_parent, gather_orphans, remove_memory
from tracereplay.launch.janitor import Janitor

__all__ = ["Child"]

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 20.0  # seconds granted to processes that outlive the command
EVERY = 0.5  # seconds between two looks at the command's descendants


class Child:
    """Starts a command, and waits until none of its processes is left.

    Args:
        command: what to run.
        environment: of the command.
        watch: called twice a second.
        memory: names in /dev/shm that are removed in the end, however this process ends.

    A context manager for the main thread; signals are forwarded within it.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], watch: Callable[[], None] = lambda: None,
        memory: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._command = list(command)
        self._environment = dict(environment)
        self._watch, self._memory = watch, memory
        self._came: list[int] = []  # signals not forwarded yet
        self.told_to_end = False  # whether any came
        self._last: int = signal.SIGTERM
        self._code: int | None = None
        self._pid = 0
        self._terminal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Child:
        gather_orphans()
        self._janitor = Janitor(GRACE)
        self._descendants = Descendants()
        self._descendants.memory.update(self._memory)
        self._wake, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._theirs = theirs
        self._old_wake = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                self._before[number] = signal.signal(number, self._note)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._end()
        finally:
            self._janitor.dismiss()
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._old_wake)
            os.close(self._wake)
            os.close(self._theirs)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)
        self.told_to_end = True

    def _start(self) -> None:
        parent, self._terminal = os.getpid(), _our_terminal()

        def begin() -> None:
            # In its own process group: a signal to ours, from a terminal or `timeout`, reaches the command only
            # through us, and only once.
            os.setpgid(0, 0)
            end_with_parent(signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

        process = subprocess.Popen(self._command, env=self._environment, preexec_fn=begin)
        self._pid = process.pid
        self._descendants.command = self._pid
        process.returncode = 0  # `_reap` waits for it, not Popen
        if self._terminal is not None:
            _give_terminal(self._terminal, self._pid)

    def wait(self) -> int:
        """Waits for the command; returns its exit code, negative if a signal ended it."""
        for _ in self._turns():
            if self._code is not None:
                return self._code
        raise AssertionError

    def settle(self, progress: Callable[[], object]) -> None:
        """Ends the processes that the command left behind, and waits for writers while they make progress.

        Args:
            progress: returns a different value whenever one has written.
        """
        self._descendants.end(self._last, GRACE, self._turns())
        seen, until = progress(), time.monotonic() + GRACE
        for _ in self._turns():
            if not self._descendants.living():
                return
            if (now := progress()) != seen:
                seen, until = now, time.monotonic() + GRACE
            elif time.monotonic() > until:
                return

    def _end(self) -> None:
        if self._code is None:  # an error here, not in the command
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
            self._descendants.end(signal.SIGTERM, GRACE, self._turns())
        for process in self._descendants.living():
            process.kill(signal.SIGKILL)
        for _ in self._turns():
            if not self._descendants.living():
                break
        remove_memory(self._descendants.memory)
        if self._terminal is not None:
            _give_terminal(self._terminal, os.getpgrp())

    def _turns(self) -> Iterator[float]:
        """On each signal and twice a second: reaps, looks at descendants and forwards signals."""
        looked = 0.0
        while True:
            self._reap()
            self._pass_on()
            if time.monotonic() >= looked + EVERY:
                looked = time.monotonic()
                self._janitor.tell(self._descendants.look(), self._descendants.memory)
                self._watch()
            yield looked
            if select.select([self._wake], [], [], EVERY / 5 if self._code is not None else EVERY)[0]:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 1 << 12)

    def _reap(self) -> None:
        """Reaps processes; notes whether the command has ended or was stopped at the terminal."""
        if self._code is not None:
            return
        pid, status = os.waitpid(self._pid, os.WNOHANG | os.WUNTRACED)
        if pid and not os.WIFSTOPPED(status):
            self._code = os.waitstatus_to_exitcode(status)
        elif pid and self._terminal is not None:
            self._stop_too(self._terminal)

    def _stop_too(self, terminal: int) -> None:
        """Ctrl-Z stopped the command: stops this process too, so that the shell resumes both."""
        _give_terminal(terminal, os.getpgrp())
        os.kill(os.getpid(), signal.SIGSTOP)
        if os.tcgetpgrp(terminal) == os.getpgrp():
            _give_terminal(terminal, self._pid)
        os.killpg(self._pid, signal.SIGCONT)

    def _pass_on(self) -> None:
        came, self._came = self._came, []
        for number in came:
            self._last = number
            if self._code is None:
                os.kill(self._pid, number)  # not reaped yet, so the id was not reused
            else:
                for process in self._descendants.living():
                    if not process.writes():
                        process.kill(number)


def _our_terminal() -> int | None:
    """The terminal, if this process's group is its foreground group."""
    with contextlib.suppress(OSError):
        if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp():
            return 0
    return None


def _give_terminal(terminal: int, group: int) -> None:
    """Makes a process group the foreground group."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # which would stop a background process
    try:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(terminal, group)
    finally:
        signal.signal(signal.SIGTTOU, before)
