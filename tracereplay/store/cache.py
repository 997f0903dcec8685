"""Traces at URLs on this machine, where engines can read them: in the user's cache, by their digests.

    HOME/goldens/
      DIGEST-KEY.pack     the trace as one file; KEY tells apart where it came from and what else it says
      DIGEST-KEY.json     the checksum of these bytes
      lock-XX             held by whoever fetches

Whoever uses an entry holds a shared lock on it, so that no other process removes it to make room. An entry whose
bytes are not those that were fetched is fetched again. Why the URL is in KEY: a trace says its digest itself, and
one that lies about it must not take the place of another's.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import xxhash

from tracereplay.errors import UsageError
from tracereplay.launch.budget import bytes_of
from tracereplay.launch.home import home
from tracereplay.storage.atomic import beside, written
from tracereplay.storage.files import PRIVATE, PRIVATE_FOLDER, File, Folder
from tracereplay.storage.remote import open_remote
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.directory import MANIFEST, SEGMENT
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.requests import NAME as REQUESTS
from tracereplay.verdict import Verdict

__all__ = ["MOST", "addressed", "kept"]

MOST = "TRACEREPLAY_GOLDENS"  # how many bytes the cache may take, as in 20GB
_MOST = "20GB"
_TRIES = 3  # before a disk that does not give back what it was given is told of
_BLOCK = 16 << 20  # bytes that one request brings
Report = Callable[[str], None]


class Kept:
    """An entry of the cache, in use until it is closed.

    Args:
        path: of the packed trace.
        held: file descriptor of it, with a shared lock.
    """

    def __init__(self, path: Path, held: int) -> None:
        self.path, self._held = path, held

    def close(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


_in_use: dict[str, tuple[Kept, int]] = {}  # of this process, by URL, with how many use it
_turn = threading.Lock()


@contextmanager
def kept(url: str, report: Report = lambda line: None) -> Iterator[Path]:
    """Where the trace at a URL lies on this machine while the context lasts; it is fetched if it has to be.

    Contexts of one process that last at the same time ask the server once.

    Args:
        url: of a packed trace, or of a directory.
        report: called with a line when it is fetched.

    Raises:
        TraceError: there is no trace, or it cannot be read.
        UsageError: it cannot be kept.
    """
    with _turn:
        known = _in_use.get(url)
        if known is not None:
            _in_use[url] = known[0], known[1] + 1
    entry = known[0] if known is not None else _entered(url, _brought(url, report))
    try:
        yield entry.path
    finally:
        _left(url, entry)


def addressed(verdict: Verdict) -> Verdict:
    """A verdict that names golden by its URL, while that is kept here: where others find it, too."""
    with _turn:
        urls = {str(entry.path): url for url, (entry, _) in _in_use.items()}
    golden = verdict.golden
    return replace(verdict, golden=replace(golden, trace=urls.get(golden.trace, golden.trace)))


def _entered(url: str, entry: Kept) -> Kept:
    """Counts a use; of two threads that brought the same, one's is taken."""
    with _turn:
        first, uses = _in_use.get(url, (entry, 0))
        _in_use[url] = first, uses + 1
    if first is not entry:
        entry.close()
    return first


def _left(url: str, entry: Kept) -> None:
    with _turn:
        uses = _in_use[url][1] - 1
        if uses:
            _in_use[url] = entry, uses
            return
        del _in_use[url]
    entry.close()


def _brought(url: str, report: Report) -> Kept:
    with open_trace(url) as remote:
        name = f"{remote.digest()}-{_key(url, remote)}"
        size = remote.size
    folder = home() / "goldens"
    path = folder / f"{name}.pack"
    try:
        folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        for _ in range(_TRIES):
            entry = _sound(path)
            if entry is not None:
                os.utime(path)
                _make_room(folder)
                return entry
            with _locked(folder / f"lock-{name[-2:]}"):
                if not _is_sound(path):  # another process may have fetched it meanwhile
                    report(f"Fetching {url} ({size / 1e6:.1f} MB)")
                    _fetch(url, path)
    except OSError as error:
        raise UsageError(
            f"{url} cannot be kept in {folder}: {error.strerror}. Free some room, or set TRACEREPLAY_HOME to "
            "another directory."
        ) from error
    raise UsageError(
        f"{url} cannot be kept in {folder}: what was written there is read otherwise; look at the disk."
    )


def _key(url: str, trace: Trace) -> str:
    """What tells apart traces of one digest: where they are, and how they are stored."""
    return hashlib.sha256(f"{url} {trace.stored()}".encode()).hexdigest()[:16]


def _sound(path: Path) -> Kept | None:
    """The entry, held, if its bytes are those that were fetched."""
    try:
        said = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["xxh3"]
        held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fcntl.flock(held, fcntl.LOCK_SH)
    with contextlib.suppress(OSError):
        # Between opening and locking, it may have been replaced or removed.
        if os.fstat(held).st_ino == path.stat().st_ino and _checksum(path) == said:
            return Kept(path, held)
    os.close(held)
    return None


def _is_sound(path: Path) -> bool:
    entry = _sound(path)
    if entry is not None:
        entry.close()
    return entry is not None


def _checksum(path: Path) -> str:
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(4 << 20):
            state.update(block)
    return state.hexdigest()


def _fetch(url: str, path: Path) -> None:
    for left in path.parent.glob(f".{path.name[:50]}.partial-*"):  # of a process that was killed
        left.unlink(missing_ok=True)
    partial = beside(path)
    try:
        source = open_remote(url)
        if isinstance(source, Folder):
            _pack(source, partial)
        else:
            _copy(source, partial)
        with open_trace(partial):  # it is a trace as far as it says so
            pass
        with written(path.with_suffix(".json")) as file:
            file.write(json.dumps({"url": url, "xxh3": _checksum(partial)}).encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _pack(folder: Folder, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tracereplay-") as scratch:
        for name in folder.names():
            if name == MANIFEST or SEGMENT.fullmatch(name) or REQUESTS.fullmatch(name):
                _copy(folder.file(name), Path(scratch) / name)
        with open_trace(scratch) as trace:
            pack_trace(trace, out)


def _copy(source: File, to: Path) -> None:
    with open(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE), "wb") as file:
        for start in range(0, source.size, _BLOCK):
            file.write(source.read(start, _BLOCK))
    source.close()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _make_room(folder: Path) -> None:
    """Removes entries until the rest fits, those first that were used longest ago, and none that is in use."""
    most = bytes_of(os.environ.get(MOST) or _MOST, MOST)
    entries = []
    for path in folder.glob("*.pack"):
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            entries.append((found.st_mtime, found.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= most:
            return
        if _removed(path):
            total -= size


def _removed(path: Path) -> bool:
    try:
        held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
    except OSError:
        return False  # somebody uses it
    finally:
        os.close(held)
    return True
