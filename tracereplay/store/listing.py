"""The traces below a place, a URL or a folder, and what each is: ``tracereplay goldens``.

Of a place elsewhere, one request lists a thousand files; then a packed trace takes one or two, its beginning and
its end, and a directory one for its manifest and one or two for each segment. Only files that are named like
traces are looked at: ``*.pack``, ``*.trace``, and directories with a manifest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tracereplay.engines.known import family_of
from tracereplay.errors import NotATrace, TracereplayError, UsageError
from tracereplay.storage.files import File, Folder, LocalFile, LocalFolder, is_url
from tracereplay.storage.remote import listed
from tracereplay.trace import Trace
from tracereplay.trace.directory import MANIFEST
from tracereplay.trace.open import trace_of

__all__ = ["Listed", "Listing", "listing"]

MOST = 20_000  # files that are looked through
_AT_ONCE = 8  # traces whose beginnings are asked for at the same time
_NAMES = (".pack", ".trace")  # a packed trace may be called either
_WORD = 200  # characters of what a stranger's trace calls its engine


@dataclass(frozen=True, slots=True)
class Listed:
    """A trace; None where it does not say, or cannot be read.

    Args:
        name: from the place that was asked about.
        path: by which it is opened: a URL, or a path.
        size: bytes.
        kind: ``recording`` or ``replay``.
        digest: of its contents.
        began: when it began to be made, in ISO 8601 (UTC).
        engine, version: what the engine was called, and its release.
        model, weights: the checkpoint's directory, and the digest of its tensors.
        requests: how many.
        complete: whether it was closed.
        error: why nothing is known of it, a sentence.
    """

    name: str
    path: str
    size: int
    kind: str | None = None
    digest: str | None = None
    began: str | None = None
    engine: str | None = None
    version: str | None = None
    model: str | None = None
    weights: str | None = None
    requests: int | None = None
    complete: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What is below a place.

    Args:
        place: as it was given.
        traces: sorted by their names.
        others: files that are not named like traces.
        left: whether there are more files than were looked through.
    """

    place: str
    traces: tuple[Listed, ...]
    others: int = 0
    left: bool = False


class _Files:
    """Files beside each other, of a place that was listed: their names and sizes are not asked for again."""

    def __init__(self, files: Mapping[str, File]) -> None:
        self._files = files

    def names(self) -> list[str]:
        return sorted(self._files)

    def file(self, name: str) -> File:
        return self._files[name]


@dataclass(frozen=True, slots=True)
class _Found:
    """A trace's files: one, or those of a directory."""

    name: str
    path: str
    opened: Callable[[], File | Folder]
    size: int


def listing(place: str) -> Listing:
    """The traces below a URL or a folder.

    Raises:
        NotATrace: there is no such place.
        TraceError, UsageError: it cannot be listed.
    """
    found, others, left = _elsewhere(place) if is_url(place) else _here(Path(place))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return Listing(place, tuple(pool.map(_described, found)), others, left)


def _elsewhere(url: str) -> tuple[list[_Found], int, bool]:
    files = listed(url)
    some = dict(sorted(files.items())[:MOST])
    folders = {name.rpartition("/")[0] for name in some if name.rpartition("/")[2] == MANIFEST}
    members: dict[str, dict[str, File]] = {folder: {} for folder in folders}
    found, others = [], 0
    for name, file in some.items():
        folder, _, last = name.rpartition("/")
        if folder in members:
            members[folder][last] = file
        elif last.endswith(_NAMES):
            found.append(_Found(name, _joined(url, name, files), partial(_same, file), file.size))
        else:
            others += 1
    for folder, those in members.items():
        size = sum(file.size for file in those.values())
        path = _joined(url, folder, files)
        found.append(_Found(folder or url.rstrip("/").rpartition("/")[2], path, partial(_Files, those), size))
    return sorted(found, key=lambda one: one.name), others, len(files) > MOST


def _joined(url: str, name: str, files: Mapping[str, object]) -> str:
    whole = url.rstrip("/")
    alone = len(files) == 1 and whole.endswith(f"/{name}")  # the place is the file
    return whole if alone or not name else f"{whole}/{name}"


def _here(place: Path) -> tuple[list[_Found], int, bool]:
    if not place.is_dir():
        raise NotATrace(f"There is no folder {place}; give one in which traces lie, or a URL.")
    found: list[_Found] = []
    others = seen = 0
    for folder, folders, names in os.walk(place):  # which follows no links
        folders.sort()
        here = Path(folder)
        seen += len(names)
        if seen > MOST:
            return found, others, True
        if MANIFEST in names:
            folders.clear()
            size = sum(os.lstat(here / name).st_size for name in names)
            found.append(_Found(_named(here, place), str(here), partial(LocalFolder, here), size))
            continue
        for name in sorted(names):
            path = here / name
            if name.endswith(_NAMES) and path.is_file() and not path.is_symlink():
                found.append(
                    _Found(_named(path, place), str(path), partial(LocalFile, path), path.lstat().st_size)
                )
            else:
                others += 1
    return sorted(found, key=lambda one: one.name), others, False


def _same(file: File) -> File:
    return file


def _named(path: Path, place: Path) -> str:
    return path.resolve().name if path == place else str(path.relative_to(place))


def _described(found: _Found) -> Listed:
    try:
        with trace_of(found.opened(), found.path) as trace:
            return Listed(found.name, found.path, found.size, **_facts(trace))
    except (TracereplayError, OSError) as error:
        return Listed(found.name, found.path, found.size, error=str(error))


def _facts(trace: Trace) -> dict[str, Any]:
    run = trace.run
    versions = run.engine_facts("versions")
    asked = {} if run.requested is None else run.requested.words()
    return {
        "kind": run.kind,
        "began": run.began,
        "engine": _word(run.engine.get("name")),
        "version": _word(versions.get(family_of(run.engine).package)),
        "model": _word(asked.get("model")),
        "weights": run.weights,
        "requests": len(run.prompts),
        "complete": trace.said_complete,
        "digest": _digest(trace),
    }


def _digest(trace: Trace) -> str | None:
    """None where it would take reading all of it, or a key that is not at hand."""
    if not trace.said_complete:
        return None
    try:
        return trace.digest()
    except UsageError:
        return None


def _word(value: object) -> str | None:
    return str(value)[:_WORD] if value else None
