"""Files and folders at a URL, through fsspec: ``s3://``, ``https://``, ``memory://``. For the analyst's side
only."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from tracereplay.errors import NotATrace, TraceError, UsageError
from tracereplay.storage.files import File, Folder

__all__ = ["RemoteFile", "RemoteFolder", "open_remote"]

T = TypeVar("T")
END = 64 << 10  # bytes at the end that come with the first request: a segment's end mark and mostly its index


class RemoteFile:
    """A remote file, read by ranges.

    Args:
        system: fsspec's file system.
        path: on it.
        size: bytes.
    """

    def __init__(self, system: Any, path: str, size: int) -> None:
        self.name = path.rsplit("/", 1)[-1]
        self.size = size
        self._system, self._path = system, path
        self._kept: tuple[int, bytes] = (size, b"")

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        if not length:
            return b""
        if offset + length > self.size - END and not self._kept[1]:
            start = max(0, self.size - END)
            self._kept = (start, self._range(start, self.size))
        start, kept = self._kept
        if offset >= start:
            return kept[offset - start : offset - start + length]
        return self._range(offset, offset + length)

    def _range(self, start: int, end: int) -> bytes:
        data: bytes = _told(lambda: self._system.cat_file(self._path, start=start, end=end), self._path)
        if len(data) > end - start:
            raise TraceError(
                f"{self._path} cannot be read by ranges: its server sent the whole file; download it."
            )
        return data

    def close(self) -> None:
        """Nothing is held open."""


class RemoteFolder:
    """A remote directory."""

    def __init__(self, system: Any, path: str) -> None:
        self._system, self._path = system, path.rstrip("/")

    def names(self) -> list[str]:
        listed = _told(lambda: self._system.ls(self._path, detail=False), self._path)
        return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in listed)

    def file(self, name: str) -> File:
        return _file(self._system, f"{self._path}/{name}")


def open_remote(url: str) -> File | Folder:
    """What is at ``url``.

    Raises:
        UsageError: nothing installed here speaks that protocol.
        NotATrace: nothing is there.
        TraceError: it cannot be reached.
    """
    try:
        system, path = importlib.import_module("fsspec.core").url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"{url} cannot be opened: {error}; fsspec's package for that protocol may be missing."
        ) from error
    try:
        return _file(system, path)
    except IsADirectoryError:
        return RemoteFolder(system, path)


def _file(system: Any, path: str) -> File:
    found = _told(lambda: system.info(path), path)
    if found.get("type") == "directory":
        raise IsADirectoryError(path)
    size = found.get("size")
    if size is None:
        raise TraceError(f"{path} cannot be read by ranges: its server does not say how long it is; download it.")
    return RemoteFile(system, path, int(size))


def _told(ask: Callable[[], T], path: str) -> T:
    """What ``ask`` returns; what it raises, as a sentence. Every protocol has errors of its own."""
    try:
        return ask()
    except FileNotFoundError as error:
        raise NotATrace(
            f"There is no trace at {path}, or it cannot be reached; give a trace's address."
        ) from error
    except Exception as error:
        raise TraceError(f"{path} cannot be read: {str(error) or type(error).__name__}.") from error
