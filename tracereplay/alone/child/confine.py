"""Removing privileges that executing a call does not need, as far as the system allows."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import resource
import signal
import socket
import struct
from pathlib import Path

__all__ = ["confine", "limit_memory"]

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000  # unshare(2)
_DEATH_SIGNAL, _NO_NEW_PRIVILEGES = 1, 38  # prctl(2)
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1  # netdevice(7)


def confine() -> None:
    """Allows only the loopback network, no core dumps and no new privileges, and ends with the parent.

    To be called before there are threads: a namespace belongs to a thread, and to those it starts later.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mine = os.getuid(), os.getgid()
    if libc.unshare(_NEW_NET) == 0:
        _loopback()
    elif libc.unshare(_NEW_USER | _NEW_NET) == 0:
        with contextlib.suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/gid_map").write_text(f"{mine[1]} {mine[1]} 1")
            Path("/proc/self/uid_map").write_text(f"{mine[0]} {mine[0]} 1")
        _loopback()


def _loopback() -> None:
    """Why: a process group of one still wants an address."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        name, flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _GET_FLAGS, request))
        fcntl.ioctl(sock, _SET_FLAGS, struct.pack("16sH14x", name, flags | _UP))


def limit_memory(more: int) -> None:
    """Lets this process's private memory grow by ``more`` bytes and no further.

    Why not its address space: torch, and CUDA all the more, reserve much of that and never touch it.
    """
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
    now = int(found.group(1)) << 10 if found else 0
    resource.setrlimit(resource.RLIMIT_DATA, (now + more, now + more))
