"""A trace as a directory: a manifest and one segment for each pass and rank.

    NAME.trace/
      manifest.json        {"format": 1, "state": "incomplete" | "complete", "run": {...}, "passes": {...}}
      record-rank0.seg     the segments

The manifest says ``incomplete`` from the first moment to the last, so that a recording that was cut off is
known without reading any data.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from tracereplay.errors import DamagedTrace, NotATrace, RecordingIncomplete, TraceError, UsageError
from tracereplay.event import Site, Step
from tracereplay.trace.reader import SegmentReader

__all__ = ["FORMAT", "Trace", "TraceDirectory", "open_trace", "segment_path"]

FORMAT = 1
_SEGMENT = re.compile(r"^(?P<pass>[a-z]+)-rank(?P<rank>\d{1,4})\.seg$")
MAX_MANIFEST = 256 << 20


def segment_path(directory: Path, pass_name: str, rank: int) -> Path:
    """Where a rank writes its part of a pass."""
    return directory / f"{pass_name}-rank{rank}.seg"


class TraceDirectory:
    """A trace that is being made.

    Args:
        path: directory to create.
        run: plain data: workload, engine, level.
        force: replace what is at ``path``.

    Raises:
        UsageError: ``path`` exists and ``force`` is not given, or it cannot be created.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], *, force: bool = False) -> None:
        self.path = path
        self._manifest: dict[str, Any] = {
            "format": FORMAT,
            "state": "incomplete",
            "run": dict(run),
            "passes": {},
        }
        if path.exists() or path.is_symlink():
            if not force:
                raise UsageError(f"{path} exists already; give another path, or --force to replace it.")
            _remove(path)
        try:
            path.mkdir(parents=True)
            self._write()
        except OSError as error:
            raise UsageError(f"The trace {path} cannot be created: {error.strerror}.") from error

    def update_run(self, **values: Any) -> None:
        """Adds to what is known of the run (the engine describes itself only after it has started)."""
        self._manifest["run"].update(values)
        self._save()

    def note(self, sentence: str) -> None:
        """Adds what the trace lacks, in words."""
        self._manifest["run"].setdefault("notes", []).append(sentence)

    def add_pass(self, name: str, results: Mapping[str, Any]) -> None:
        """Adds what the engine returned for a pass."""
        self._manifest["passes"][name] = dict(results)
        self._save()

    def complete(self) -> None:
        """Declares the trace complete."""
        self._manifest["state"] = "complete"
        self._save()

    def _save(self) -> None:
        try:
            self._write()
        except OSError as error:
            raise RecordingIncomplete(
                f"{self.path} is incomplete: its manifest cannot be written: {error.strerror}."
            ) from error

    def _write(self) -> None:
        """Replaces the manifest in one step: there is always a whole one, the new or the old."""
        partial = self.path / "manifest.json.partial"
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump(self._manifest, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path / "manifest.json")
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def _remove(path: Path) -> None:
    """Removes a trace; anything else at that path is left alone, since it is not ours to delete."""
    if path.is_dir() and not path.is_symlink():
        if any(path.iterdir()) and not (path / "manifest.json").exists():
            raise UsageError(f"{path} is a directory that holds no trace; it is not replaced.")
        shutil.rmtree(path)
    else:
        path.unlink()


class Trace:
    """A trace, open for reading."""

    def __init__(self, path: Path, manifest: Mapping[str, Any], segments: Mapping[tuple[str, int], Path]) -> None:
        self.path = path
        self.run: Mapping[str, Any] = manifest["run"]
        self.results: Mapping[str, Mapping[str, Any]] = manifest["passes"]
        self._complete = manifest["state"] == "complete"
        self._paths = segments
        self._open: dict[tuple[str, int], SegmentReader] = {}

    @property
    def passes(self) -> tuple[str, ...]:
        """Names of the passes that have segments: ``record``, or ``rerun`` and ``injected``."""
        return tuple(dict.fromkeys(name for name, _ in self._paths))

    @property
    def complete(self) -> bool:
        """Whether the recording was closed and every segment has its end mark."""
        return self._complete and all(self.segment(*key).complete for key in self._paths)

    def ranks(self, pass_name: str) -> tuple[int, ...]:
        """The ranks that recorded a pass."""
        return tuple(sorted(rank for name, rank in self._paths if name == pass_name))

    def segment(self, pass_name: str, rank: int = 0) -> SegmentReader:
        """A rank's segment of a pass."""
        key = (pass_name, rank)
        if key not in self._paths:
            raise TraceError(f"{self.path} has no pass {pass_name!r} of rank {rank}; it has {list(self._paths)}.")
        if key not in self._open:
            self._open[key] = SegmentReader(self._paths[key])
        return self._open[key]

    def sites(self, pass_name: str, rank: int = 0) -> Mapping[str, Site]:
        """The sites of a pass by name."""
        return self.segment(pass_name, rank).sites

    def steps(self, pass_name: str, rank: int = 0) -> list[Step]:
        """The committed steps of a pass; tensors are not read yet."""
        return list(self.segment(pass_name, rank).steps())

    def digest(self) -> str:
        """xxh3-128 over the segments' bytes, in order of their names, as 32 hex digits."""
        state = xxhash.xxh3_128()
        for path in sorted(self._paths.values()):
            state.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    state.update(block)
        return state.hexdigest()

    def close(self) -> None:
        for reader in self._open.values():
            reader.close()


def open_trace(path: str | os.PathLike[str]) -> Trace:
    """Opens a trace for reading.

    Raises:
        NotATrace: there is no trace at ``path``.
        DamagedTrace: its manifest is not what was written.
    """
    directory = Path(path)
    manifest = _read_manifest(directory)
    segments = {}
    for entry in sorted(directory.iterdir()):
        match = _SEGMENT.match(entry.name)
        if match and entry.is_file() and not entry.is_symlink():
            segments[(match["pass"], int(match["rank"]))] = entry
    return Trace(directory, manifest, segments)


def _read_manifest(directory: Path) -> Mapping[str, Any]:
    if not directory.exists():
        raise NotATrace(f"There is no trace at {directory}; give the path of a recorded trace.")
    path = directory / "manifest.json"
    if not directory.is_dir() or not path.is_file():
        raise NotATrace(f"{directory} is not a trace: it is not a directory with a manifest.json in it.")
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise DamagedTrace(f"{path} is larger than {MAX_MANIFEST} bytes; that is no trace's manifest.")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise DamagedTrace(f"{path} cannot be read: {error}.") from error
    _check_manifest(manifest, path)
    checked: Mapping[str, Any] = manifest
    return checked


def _check_manifest(manifest: Any, path: Path) -> None:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise DamagedTrace(f"{path} is not the manifest of a trace: it has no format number.")
    if manifest["format"] != FORMAT:
        raise TraceError(
            f"{path} is of format {manifest['format']}; this version reads format {FORMAT}; update tracereplay."
        )
    if not all(isinstance(manifest.get(key), dict) for key in ("run", "passes")) or "state" not in manifest:
        raise DamagedTrace(f"{path} lacks one of run, passes and state.")
