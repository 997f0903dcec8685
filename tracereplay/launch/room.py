"""A directory in memory by which a recording's parent and its engine's workers speak, whatever the disk does.

A parent that is killed leaves its room behind, in memory. Rooms say whose they are, and whoever makes the next one
removes those whose owner is dead.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from tracereplay.launch.descendants import SHARED, Process, alive, this_process
from tracereplay.recorder.orders import ORDERS
from tracereplay.recorder.status import read_status

__all__ = ["Room"]

_PREFIX = "tracereplay-room-"
_OWNER = "owner"  # a file: the owner's process, and the namespace in which it has this number


class Room:
    """Made by the parent, before its command starts; only its owner may look into it."""

    def __init__(self) -> None:
        parent = SHARED if os.access(SHARED, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
        _sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        owner = this_process()
        (self.path / _OWNER).write_text(f"{owner.pid} {owner.start} {_namespace()}")
        (self.path / ORDERS).touch(mode=0o600)

    @property
    def memory(self) -> list[str]:
        """Its name in shared memory, for whoever tidies up there."""
        return [self.path.name] if self.path.parent == SHARED else []

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Removes rooms that nobody has any more."""
    for path in parent.glob(f"{_PREFIX}*"):
        if _is_left(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_left(room: Path) -> bool:
    """Whether a room is this user's, its owner is dead, and so are the engines that show there how they do."""
    try:
        found = room.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            return False
        pid, start, namespace = map(int, (room / _OWNER).read_text().split())
    except (OSError, ValueError):  # one that is just being made, or an older release's
        return False
    # Containers may share this memory, and number their processes by themselves.
    if namespace != _namespace() or alive(Process(pid, start)):
        return False
    return not any(rank.alive() for rank in read_status(room))


def _namespace() -> int:
    """Which processes this one sees."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
