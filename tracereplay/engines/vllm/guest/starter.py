"""The process that started a worker: whether it has ended, or is about to.

A worker learns by the end of a pipe that its engine's process was killed. The kernel closes the files of a dying
process before it gives its children to another parent, so that `os.getppid` may still name it then: for
milliseconds, or for longer where there are gigabytes of memory to give back.
"""

from __future__ import annotations

import os

__all__ = ["Starter"]

_EXITING = 0x4  # PF_EXITING, among a process's flags in /proc
_STATE, _FLAGS = 0, 6  # fields of /proc/PID/stat behind the name


class Starter:
    """The process that started this one, as long as there is one."""

    def __init__(self) -> None:
        self.pid = os.getppid()

    def gone(self) -> bool:
        """Whether it has ended, or its end cannot be stopped any more; False where it cannot be seen, as by a
        container's first process."""
        return self.pid > 0 and (os.getppid() != self.pid or _ends(self.pid))


def _ends(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return fields[_STATE] in (b"Z", b"X") or bool(int(fields[_FLAGS]) & _EXITING)
    except FileNotFoundError:
        return True
    except (OSError, ValueError, IndexError):
        return False  # no Linux, or nobody may look: what `os.getppid` says has to do
