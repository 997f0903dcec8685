"""Files that are read by ranges: local ones, parts of others, and (on the analyst's side) remote ones."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Protocol, runtime_checkable

from tracereplay.errors import TraceError

__all__ = ["PRIVATE", "PRIVATE_FOLDER", "File", "Folder", "LocalFile", "LocalFolder", "Window", "is_url"]

PRIVATE, PRIVATE_FOLDER = 0o600, 0o700  # modes of what holds prompts and their answers


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether this is no path on this machine."""
    return "://" in os.fspath(place)


class File(Protocol):
    """What can be read by ranges. ``read`` gives fewer bytes than asked for only at the end of the file."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def close(self) -> None: ...


@runtime_checkable
class Folder(Protocol):
    """Files beside each other."""

    def names(self) -> list[str]: ...
    def file(self, name: str) -> File: ...


class LocalFile:
    """A file on this machine.

    Args:
        path: of a regular file; links are not followed, since a trace that came from a stranger may hold one to a
            file of the reader's own.

    Raises:
        TraceError: it cannot be opened, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            what = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise TraceError(f"{path} cannot be opened: {what}.") from error
        found = os.fstat(self._fd)
        self.size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise TraceError(f"{path} is not a regular file.")

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        try:
            found = os.pread(self._fd, length, offset)
            while len(found) < length:
                more = os.pread(self._fd, length - len(found), offset + len(found))
                if not more:
                    break
                found += more
            return found
        except OSError as error:
            raise TraceError(f"{self.name} cannot be read: {error.strerror}.") from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


class LocalFolder:
    """A directory on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        """Of all entries, sorted."""
        try:
            return sorted(os.listdir(self._path))
        except OSError as error:
            raise TraceError(f"{self._path} cannot be read: {error.strerror}.") from error

    def file(self, name: str) -> LocalFile:
        """One of them, to be closed by who asked for it."""
        return LocalFile(self._path / name)


class Window:
    """A part of another file, read as a file of its own.

    Args:
        file: the whole.
        offset: where the part begins, bytes.
        size: of the part, bytes.
        name: for messages.
    """

    def __init__(self, file: File, offset: int, size: int, name: str) -> None:
        self._file, self._offset = file, offset
        self.size, self.name = size, name

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        return self._file.read(self._offset + offset, length)

    def close(self) -> None:
        """The whole is closed by who opened it."""
