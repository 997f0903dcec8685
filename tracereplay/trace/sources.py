"""Where a trace lies: a directory, a packed file, a bundle, or a URL of any; and what files it has there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tracereplay.errors import DamagedTrace, NotATrace
from tracereplay.storage.files import File, Folder, LocalFile, LocalFolder
from tracereplay.storage.zipped import is_zip
from tracereplay.trace.bundled import golden_in
from tracereplay.trace.directory import MANIFEST, SEGMENT
from tracereplay.trace.manifest import MAX_MANIFEST, read_manifest
from tracereplay.trace.packfile import packed_parts
from tracereplay.trace.requests import NAME as REQUESTS

__all__ = ["Key", "exists", "files_in", "source_of"]

Key = tuple[str, int]  # pass (and engine, if it is not the first), rank
Opened = tuple[dict[str, Any], dict[Key, File], dict[str, File]]


def files_in(source: File | Folder, where: Path | str) -> Opened:
    """A trace's manifest, its segments, and its files of requests by their names; ``where`` is said in messages.

    Raises:
        NotATrace, DamagedTrace: see `open.open_trace`.
    """
    return _of_folder(source, where) if isinstance(source, Folder) else _of_pack(source, where)


def source_of(path: Path | str) -> File | Folder:
    """What is there; a URL is a text.

    Raises:
        NotATrace: there is nothing.
    """
    if isinstance(path, str):
        found: File | Folder = importlib.import_module("tracereplay.storage.remote").open_remote(path)
        return found
    if not exists(path):
        raise NotATrace(f"There is no trace at {path}; give the path of a recorded trace.")
    return LocalFolder(path) if path.is_dir() else LocalFile(path)


def exists(path: Path) -> bool:
    """Whether there is anything, whatever the name."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a zero in it
        return False


def _of_folder(folder: Folder, path: Path | str) -> Opened:
    names = folder.names()
    if MANIFEST not in names:
        raise NotATrace(f"{path} is not a trace: it is not a directory with a {MANIFEST} in it.")
    file = folder.file(MANIFEST)
    manifest = read_manifest(file.read(0, MAX_MANIFEST + 1), f"{path}/{MANIFEST}")
    file.close()
    found = {name: match for name in names if (match := SEGMENT.fullmatch(name))}
    segments = {(m["pass"], int(m["rank"])): folder.file(name) for name, m in found.items()}
    return manifest, segments, {name: folder.file(name) for name in names if REQUESTS.fullmatch(name)}


def _of_pack(file: File, path: Path | str) -> Opened:
    try:
        manifest, parts, asked = packed_parts(golden_in(file) if is_zip(file) else file)
    except NotATrace as error:
        raise NotATrace(f"{path} is not a trace: it is neither a directory of one nor a packed one.") from error
    segments: dict[Key, File] = {}
    for name, part in parts:
        match = SEGMENT.fullmatch(name)
        if match is None or (match["pass"], int(match["rank"])) in segments:
            raise DamagedTrace(f"{path} holds a segment named {name!r}; segments are named like record-rank0.seg.")
        segments[match["pass"], int(match["rank"])] = part
    return manifest, segments, dict(asked)
