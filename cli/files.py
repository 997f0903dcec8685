"""Files that commands write: each replaces only a file of its own kind, and appears only when complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tracereplay.comparator.numbers.policy_file import is_calibrated
from tracereplay.errors import TraceError, UsageError
from tracereplay.launch.process import is_log
from tracereplay.storage.atomic import written
from tracereplay.storage.files import LocalFile
from tracereplay.storage.zipped import Zipped
from tracereplay.trace.bundled import GOLDEN, is_bundle
from tracereplay.trace.export import is_exported_calls, is_exported_tensors

__all__ = [
    "CALLS",
    "LOG",
    "PAGE",
    "POLICY",
    "TENSORS",
    "VERDICT",
    "ZIPPED",
    "FileKind",
    "check_distinct",
    "check_output",
    "make_room",
    "write_text",
]

MOST = 256 << 20  # bytes of a file that is read to see what it is


class FileKind(NamedTuple):
    """A kind of file: what it is called, and how to recognize one."""

    what: str
    known: Callable[[Path], bool]


def _is_verdict(path: Path) -> bool:
    found = _json(path)
    return (
        isinstance(found, dict)
        and type(found.get("schema")) is int
        and bool({"verdict", "rollout", "invariant"} & set(found))
    )


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return _PAGE in file.read(4096)


def _is_bundled(path: Path) -> bool:
    try:
        return is_bundle(path) and GOLDEN in Zipped(LocalFile(path)).members
    except TraceError:
        return False


_PAGE = b'<meta name="generator" content="tracereplay">'  # as `report.html` writes it
ZIPPED = FileKind("a bundle written by bundle -o", _is_bundled)
PAGE = FileKind("a page written by report -o", _is_page)
VERDICT = FileKind("a verdict", _is_verdict)
POLICY = FileKind("a policy written by calibrate, without rules of your own", is_calibrated)
LOG = FileKind("an engine log", is_log)
TENSORS = FileKind("a tensor file written by export", is_exported_tensors)
CALLS = FileKind("a call list written by export", is_exported_calls)


def check_output(option: str, path: Path, kind: FileKind) -> None:
    """Raises UsageError if ``path`` cannot be written, or holds something that must not be replaced."""
    if path.is_dir():
        raise UsageError(f"{option} {path} cannot be written: it is a directory.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{option} {path} cannot be written: the directory {folder} does not exist.")
    if not path.exists():
        if not os.access(folder, os.W_OK):
            raise UsageError(f"{option} {path} cannot be written: you have no write permission in {folder}.")
        return
    if path.is_file() and not _may_go(path, kind):
        raise UsageError(
            f"{option} {path} already exists and is not {kind.what}, so it is not replaced. Give another path, or "
            "move the file away."
        )


def _may_go(path: Path, kind: FileKind) -> bool:
    try:
        size = path.stat().st_size
        return not size or (size <= MOST and kind.known(path))
    except OSError:
        return False


def check_distinct(outputs: Mapping[str, Path | str | None]) -> None:
    """Raises UsageError if two options name the same file."""
    seen: dict[str, str] = {}
    for option, path in outputs.items():
        if path is None or str(path) == "-":
            continue
        place = os.path.realpath(path)
        if place in seen:
            raise UsageError(f"{seen[place]} and {option} name the same file, {path}; give each its own file.")
        seen[place] = option


def make_room(option: str, folder: Path | None) -> None:
    """Creates the directory for a command's traces; they are never mixed with existing files.

    Raises:
        UsageError: it is not an empty directory, or it cannot be created.
    """
    if folder is None:
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{option} {folder} is not an empty directory; give another path.")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option} {folder} cannot be created: {error.strerror}.") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with written(path) as file:
        file.write(text.encode())
