"""Files and folders at a URL, through fsspec: ``s3://``, ``https://``, ``memory://``. For the analyst's side
only; `upload` writes there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from tracereplay.errors import NotATrace, TraceError, UsageError
from tracereplay.storage.files import File, Folder

__all__ = ["RemoteFile", "RemoteFolder", "file_system", "listed", "open_remote"]

T = TypeVar("T")
# Bytes that come with a request: near either end, where files say what they hold, and around what is asked for,
# since a step's chunks stand before its record. A request takes longer than some hundred kilobytes.
BEGINNING, END = 64 << 10, 128 << 10
BEFORE, AFTER = 128 << 10, 128 << 10
WINDOWS = 4  # that are kept


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
        self._kept: list[tuple[int, bytes]] = []  # where it begins, and what it is; the one used last is last

    def read(self, offset: int, length: int) -> bytes:
        end = offset + max(0, min(length, self.size - offset))
        if end <= offset:
            return b""
        found = next((kept for kept in self._kept if kept[0] <= offset and end <= kept[0] + len(kept[1])), None)
        if found is None:
            start, stop = self._window(offset, end)
            found = start, self._range(start, stop)
        others = [kept for kept in self._kept if kept is not found]
        self._kept = [*others[-(WINDOWS - 1) :], found]
        return found[1][offset - found[0] : end - found[0]]

    def _window(self, offset: int, end: int) -> tuple[int, int]:
        """What to ask for: more than is wanted where that is little, and nothing that is there."""
        if end > self.size - END:
            return min(offset, max(0, self.size - END)), self.size
        if offset < BEGINNING:
            return 0, max(end, min(BEGINNING, self.size))
        if end - offset > BEFORE:
            return offset, end
        there = [start + len(data) for start, data in self._kept if start + len(data) <= offset]
        return max([offset - BEFORE, 0, *there]), min(end + AFTER, self.size)

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
    system, path = file_system(url)
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


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path on it.

    Raises:
        UsageError: nothing installed here speaks that protocol.
    """
    try:
        system, path = importlib.import_module("fsspec.core").url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"{url} cannot be opened: {error}; fsspec's package for that protocol may be missing."
        ) from error
    return system, path


def listed(url: str) -> dict[str, RemoteFile]:
    """All files below a URL, by their paths from there. One request lists a thousand of them, with their sizes.

    Raises:
        UsageError: nothing installed here speaks that protocol.
        NotATrace: there is no such place.
        TraceError: it cannot be listed.
    """
    system, path = file_system(url)
    found = _told(lambda: system.find(path, detail=True), path)
    if not found and not _told(lambda: system.exists(path), path):
        raise NotATrace(f"There is nothing at {url}, or it cannot be reached; give the address of a folder.")
    root = path.rstrip("/")
    return {
        name.removeprefix(root).lstrip("/") or name.rpartition("/")[2]: RemoteFile(system, name, int(info["size"]))
        for name, info in found.items()
        if isinstance(info.get("size"), int)
    }
