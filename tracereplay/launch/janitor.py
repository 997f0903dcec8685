"""Cleans up for a parent that was killed: ends its command's processes and removes their shared memory.

The parent reports its descendants to a forked child. If the parent exits without dismissing it, the command has
received SIGTERM (`descendants.end_with_parent`); processes that remain after a while are killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

from tracereplay.launch.descendants import Process, alive, below, remove_memory

__all__ = ["Janitor"]

_DONE = "done"


class Janitor:
    """Created by the parent before it starts its command.

    Args:
        grace: seconds that processes have to end by themselves.
    """

    def __init__(self, grace: float) -> None:
        theirs, self._to = os.pipe2(os.O_CLOEXEC)
        self._told: set[str] = set()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._to)
                _serve(theirs, grace)
            finally:
                os._exit(0)
        os.close(theirs)

    def tell(self, processes: Iterable[Process], memory: Iterable[str]) -> None:
        """Reports the current processes and shared memory."""
        said = {f"process {p.pid} {p.start}" for p in processes} | {f"memory {name}" for name in memory}
        self._say(said - self._told)
        self._told |= said

    def dismiss(self) -> None:
        """Ends the janitor; nothing is left to clean up."""
        self._say([_DONE])
        os.close(self._to)
        os.waitpid(self.pid, 0)

    def _say(self, lines: Iterable[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        with contextlib.suppress(OSError):  # it was killed; the parent cleans up itself
            os.write(self._to, text.encode())


def _serve(listen: int, grace: float) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN if number != signal.SIGCHLD else signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.closerange(3, listen)  # so that readers of the parent's pipes see their end without waiting for us
    os.closerange(listen + 1, 1 << 12)
    with open(listen) as lines:
        said = lines.read().splitlines()
    if _DONE not in said:
        _tidy(said, grace)


def _tidy(said: list[str], grace: float) -> None:
    processes, memory = set(), set()
    for kind, *rest in map(str.split, said):
        if kind == "process":
            processes.add(Process(int(rest[0]), int(rest[1])))
        elif kind == "memory":
            memory.add(rest[0])
    _end(processes, grace, writers=False)
    _end(processes, grace, writers=True)
    remove_memory(memory)


def _end(known: set[Process], grace: float, *, writers: bool) -> None:
    until = time.monotonic() + grace
    while left := [p for p in {*known, *below(known)} if alive(p) and (writers or not p.writes())]:
        if time.monotonic() > until:
            for process in left:
                process.kill(signal.SIGKILL)
        time.sleep(0.1)
