"""Finds and ends the processes that a command started, and removes their shared memory.

A recorded command leaves nothing behind: no process (this one adopts orphans) and no file in ``/dev/shm``, which
would occupy memory until the machine is restarted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "SHARED",
    "Descendants",
    "Process",
    "alive",
    "below",
    "end_with_parent",
    "gather_orphans",
    "remove_memory",
    "this_process",
]

SHARED = Path("/dev/shm")
LOOKS = 5  # at a new file of shared memory, before it is taken for another program's
_PDEATHSIG, _SUBREAPER = 1, 36  # of prctl
WRITER = b"tracereplay.recorder."


def gather_orphans() -> None:
    """Makes this process adopt its orphaned descendants."""
    _prctl(_SUBREAPER, 1)


def end_with_parent(number: int) -> None:
    """Sends this process the signal ``number`` when the thread that started it ends."""
    _prctl(_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Process:
    """A process, by its id and start time, since ids are reused."""

    pid: int
    start: int

    def writes(self) -> bool:
        """Whether it is the writer of a recording, which exits by itself once everything is written."""
        return WRITER in _read(f"/proc/{self.pid}/cmdline")

    def kill(self, number: int) -> None:
        if alive(self):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def memory(self) -> set[int]:
        """Inodes of the shared memory that it has open or mapped.

        Not by name: a semaphore gets its name only after it was mapped under another.
        """
        lines = _read(f"/proc/{self.pid}/maps").splitlines()
        found = {int(line.split(None, 5)[4]) for line in lines if b" /dev/shm/" in line}
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{self.pid}/fd"):
                with contextlib.suppress(OSError):
                    path = f"/proc/{self.pid}/fd/{name}"
                    if os.readlink(path).startswith("/dev/shm/"):
                        found.add(os.stat(path).st_ino)
        return found


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _stat(pid: int | str) -> tuple[str, int, int] | None:
    """State, parent and start of a process."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return (fields[0].decode(), int(fields[1]), int(fields[19])) if len(fields) > 19 else None


def alive(process: Process) -> bool:
    """Whether it runs; a zombie does not."""
    found = _stat(process.pid)
    return found is not None and found[0] not in "ZX" and found[2] == process.start


def this_process() -> Process:
    """The one that this runs in."""
    found = _stat("self")
    return Process(os.getpid(), 0 if found is None else found[2])


class Descendants:
    """The processes that this one starts from now on, directly or not.

    Attributes: ``memory``, names of their files in /dev/shm; ``command``, the process that the caller reaps.
    """

    def __init__(self) -> None:
        self.memory: set[str] = set()
        self.command = 0
        self._others = {process.pid for process in _children().get(os.getpid(), ())}
        self._before = _shared()
        self._looks: dict[str, int] = {}

    def look(self) -> list[Process]:
        """Updates processes and shared memory; returns the running processes."""
        living = self.living()
        known = {*self._before, *self.memory}
        new = {n: i for n, i in _shared().items() if n not in known and self._looks.get(n, 0) < LOOKS}
        if new:
            for name in new:
                self._looks[name] = self._looks.get(name, 0) + 1
            theirs = set[int]().union(*(process.memory() for process in living))
            self.memory.update(name for name, inode in new.items() if inode in theirs)
        return living

    def living(self) -> list[Process]:
        """The running processes, parents first; reaps orphans that have ended."""
        children = _children()
        mine = [process for process in children.get(os.getpid(), ()) if process.pid not in self._others]
        for process in mine:
            if process.pid != self.command and not alive(process):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
        children[os.getpid()] = mine
        return [process for process in _below(os.getpid(), children) if alive(process)]

    def end(self, number: int, grace: float, wait: Iterable[object]) -> None:
        """Ends all but writers: with a signal, and after ``grace`` seconds by SIGKILL.

        Args:
            number: the signal.
            grace: seconds until they are killed.
            wait: iterated while they end; it must reap them and call `look`.
        """
        for process in self._ending():
            process.kill(number)
        until = time.monotonic() + grace
        for _ in wait:
            left = self._ending()
            if not left:
                return
            if time.monotonic() > until:
                for process in left:
                    process.kill(signal.SIGKILL)

    def _ending(self) -> list[Process]:
        return [process for process in self.living() if not process.writes()]


def below(processes: Iterable[Process]) -> list[Process]:
    """All descendants of ``processes``."""
    children = _children()
    return [found for process in processes if alive(process) for found in _below(process.pid, children)]


def _children() -> dict[int, list[Process]]:
    """All processes of this machine, by parent."""
    found: dict[int, list[Process]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        if (stat := _stat(name)) is not None:
            found.setdefault(stat[1], []).append(Process(int(name), stat[2]))
    return found


def _below(pid: int, children: dict[int, list[Process]]) -> Iterator[Process]:
    for child in children.get(pid, ()):
        yield child
        yield from _below(child.pid, children)


def _shared() -> dict[str, int]:
    """The files of shared memory, and their inodes."""
    try:
        return {entry.name: entry.inode() for entry in os.scandir(SHARED)}
    except OSError:
        return {}


def remove_memory(names: Iterable[str]) -> None:
    """Removes files of shared memory that no process uses."""
    there = _shared()
    left = {name: there[name] for name in names if name in there}
    if not left:
        return
    used: set[int] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        used |= Process(int(pid), 0).memory()
    for name, inode in left.items():
        if inode not in used:
            path = SHARED / name
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
