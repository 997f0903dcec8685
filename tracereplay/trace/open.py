"""Opening a trace: a directory, a packed file, or a URL of either."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from tracereplay.errors import DamagedTrace, TraceError, UsageError
from tracereplay.event import Site, Step, Value
from tracereplay.passes import RECORD
from tracereplay.storage.files import File, Folder
from tracereplay.trace.chunk import Bytes
from tracereplay.trace.digest import content_digest
from tracereplay.trace.directory import SEGMENT, WEIGHTS
from tracereplay.trace.forms import StepRecord
from tracereplay.trace.joined import JoinedSegments, Start, lacking_in, starts
from tracereplay.trace.known import KnownRequest, known_requests
from tracereplay.trace.outline import Outline
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.run import Run, read_run
from tracereplay.trace.served import served_run, told_by_segments
from tracereplay.trace.sources import Key, exists, files_in, source_of

__all__ = ["Trace", "open_trace", "trace_of"]

_PLAIN_NAME = re.compile(r"[\w][\w.-]*")


class Trace:
    """A trace, open for reading; iterating gives the steps of its first pass.

    >>> tracereplay.open_trace("golden.trace")
    <Trace 'golden.trace': record, complete>

    Args:
        path: where it is, for messages and for finding its base.
        manifest: see `manifest.py`.
        segments: by pass and rank.
        base: the trace that parts of this one are stored as a difference from, if it is known already.
        packed, request_files: whether it is one file; and by name, those that say who asked.
    """

    def __init__(
        self, path: Path | str, manifest: Mapping[str, Any], segments: Mapping[Key, File],
        base: Trace | None = None, packed: bool = False, request_files: Mapping[str, File] | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self.packed = packed
        self.manifest = manifest
        self._raw_run: dict[str, Any] | None = None
        self._run: Run | None = None
        self.results: Mapping[str, Mapping[str, Any]] = manifest["passes"]
        self._complete = bool(manifest["state"] == "complete")
        self._files = segments
        self._open: dict[Key, SegmentReader] = {}
        self._joined: dict[Key, JoinedSegments] = {}
        self._starts: dict[str, list[Start]] = {}
        self._base = base
        self.request_files: Mapping[str, File] = request_files or {}

    @cached_property
    def requests(self) -> tuple[KnownRequest, ...]:
        """The requests of a recorded command, and who asked for them."""
        return known_requests(self)

    @property
    def run(self) -> Run:
        """What the trace says of its run.

        Raises:
            DamagedTrace: it is not what a recording says.
        """
        if self._run is None:
            try:
                self._run = read_run(self.raw_run)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DamagedTrace(
                    f"{self.path} has a run or a workload that cannot be read: {error!r}."
                ) from error
        return self._run

    @property
    def raw_run(self) -> dict[str, Any]:
        """`run` as it is stored; of a recording that was cut off, its segments say what is missing.

        For what writes a manifest; whoever reads one takes `run`.
        """
        if self._raw_run is None:
            self._raw_run = dict(self.manifest["run"])
            if told_by_segments(self.manifest):
                self._raw_run = served_run(self, self._raw_run)
        return self._raw_run

    @property
    def passes(self) -> tuple[str, ...]:
        """Names of the passes that have segments: ``record``, or ``rerun`` and ``injected``."""
        return tuple(dict.fromkeys(_pass_of(name) for name, _ in self._files if name != WEIGHTS))

    def require_recording(self) -> None:
        """Raises UsageError unless this is a recording: whose only pass is ``record``."""
        if self.passes != (RECORD,):
            found = f"a replay (it has the passes {', '.join(self.passes)})" if self.passes else "without any pass"
            raise UsageError(f"{self.path} is {found}, not a recording; give the golden recording.")

    def engines(self, pass_name: str) -> tuple[str, ...]:
        """The engines that made a pass, as their segments' names begin: ``record``, ``record-engine1``."""
        found = {name for name, _ in self._files if _pass_of(name) == pass_name}
        return tuple(sorted(found, key=_engine_of))

    def joined(self, pass_name: str) -> tuple[str, ...]:
        """Those of `engines` that are read as one: they ran the model of the first, cut alike."""
        found = self.engines(pass_name)
        metas = [self.part(min(key for key in self._files if key[0] == name)).meta for name in found]
        return tuple(
            name
            for name, meta in zip(found, metas, strict=True)
            if all(meta.get(key) == metas[0].get(key) for key in ("model", "world"))
        )

    def weights(self) -> dict[str, Value]:
        """The checkpoint's tensors by name, if they were recorded."""
        if (WEIGHTS, 0) not in self._files:
            return {}
        return {call.site: call.outputs[0] for step in self.segment(WEIGHTS).steps() for call in step.calls}

    @property
    def format(self) -> int:
        """The version of the format that it is written in."""
        return int(self.manifest["format"])

    @property
    def sealed(self) -> bool:
        """Whether only those can read it whom it was written for."""
        return bool(self.manifest.get("recipients"))

    @property
    def complete(self) -> bool:
        """Whether the recording was closed and every segment has its end mark."""
        return self._complete and all(self.part(key).complete for key in self._files)

    @property
    def dropped(self) -> int:
        """Steps dropped because the writer could not keep up; the most of any segment."""
        counts = [(self.part(key).summary or {}).get("dropped", 0) for key in self._files]
        return max((count for count in counts if type(count) is int), default=0)

    def lacking(self, pass_name: str) -> frozenset[int]:
        """Requests that are not whole: steps of theirs were left out. Of very many, the first."""
        ranks = self.ranks(pass_name)
        return frozenset(n for rank in ranks for n in lacking_in(self.segment(pass_name, rank).summary))

    @property
    def said_complete(self) -> bool:
        """Whether the manifest says so; `complete` looks at the segments too."""
        return self._complete

    @property
    def size(self) -> int:
        """Bytes of its segments."""
        return sum(file.size for file in self._files.values())

    @property
    def read_from(self) -> tuple[Path, ...]:
        """Where it lies on this machine, and the trace beside it that it may be stored as a difference from."""
        if isinstance(self.path, str):
            return ()
        described = self.run.base
        name = described.get("name") if isinstance(described, dict) else None
        return (self.path,) if not isinstance(name, str) else (self.path, self.path.parent / name)

    @property
    def parts(self) -> tuple[Key, ...]:
        """Pass and rank of each segment."""
        return tuple(self._files)

    def file(self, key: Key) -> File:
        """The bytes of a segment."""
        return self._files[key]

    def parts_of(self, pass_name: str) -> tuple[Key, ...]:
        """Those of `parts` that are a pass's."""
        return tuple(sorted(key for key in self._files if _pass_of(key[0]) == pass_name))

    def ranks(self, pass_name: str) -> tuple[int, ...]:
        """The ranks that recorded a pass."""
        return tuple(sorted({rank for name, rank in self._files if _pass_of(name) == pass_name}))

    def part(self, key: Key) -> SegmentReader:
        """One of `parts`, as it is in its file."""
        if key not in self._files:
            raise TraceError(f"{self.path} has no pass {key[0]!r} of rank {key[1]}; it has {list(self._files)}.")
        if key not in self._open:
            self._open[key] = SegmentReader(self._files[key], self.from_base, self.base_size)
        return self._open[key]

    def segment(self, pass_name: str, rank: int = 0) -> SegmentReader | JoinedSegments:
        """A rank's segment of a pass; where several engines made the pass, theirs as one."""
        key = (pass_name, rank)
        if self.engines(pass_name) in ((pass_name,), ()):
            return self.part(key)
        if key not in self._joined:
            names = self.joined(pass_name)
            if pass_name not in self._starts:
                ranks = [[self.part(k) for k in self.parts if k[0] == name] for name in names]
                self._starts[pass_name] = starts(ranks)
            there = [
                (n, s) for n, s in zip(names, self._starts[pass_name], strict=True) if (n, rank) in self._files
            ]
            if not there:
                raise TraceError(
                    f"{self.path} has no pass {pass_name!r} of rank {rank}; it has {list(self.parts)}."
                )
            self._joined[key] = JoinedSegments([self.part((n, rank)) for n, _ in there], [s for _, s in there])
        return self._joined[key]

    def sites(self, pass_name: str, rank: int = 0) -> Mapping[str, Site]:
        """The sites of a pass by name."""
        return self.segment(pass_name, rank).sites

    def steps(self, pass_name: str, rank: int = 0) -> list[Step]:
        """The committed steps of a pass; tensors are not read yet."""
        return list(self.segment(pass_name, rank).steps())

    def outline(self, pass_name: str) -> Outline:
        """The steps of a pass in short, by its first rank."""
        return self.segment(pass_name, self.ranks(pass_name)[0]).outline()

    def records(self, pass_name: str, rank: int = 0) -> Iterator[StepRecord]:
        """The committed steps of a pass by their forms; see `SegmentReader.records`."""
        return self.segment(pass_name, rank).records()

    def __iter__(self) -> Iterator[Step]:
        return self.segment(self.passes[0], self.ranks(self.passes[0])[0]).steps() if self.passes else iter(())

    def __len__(self) -> int:
        """How many committed steps its first pass has."""
        return len(self.segment(self.passes[0], self.ranks(self.passes[0])[0])) if self.passes else 0

    def __bool__(self) -> bool:
        return True  # an open trace, even without a step

    def __repr__(self) -> str:
        state = "complete" if self.said_complete else "not complete"
        return f"<Trace {str(self.path)!r}: {', '.join(self.passes) or 'no pass'}, {state}>"

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def digest(self) -> str:
        """xxh3-128 over the segments' contents, in order of their names, as 32 hex digits.

        It covers contents, not how they are stored: packing and compressing do not change it.
        """
        state = xxhash.xxh3_128()
        for name, rank in sorted(self._files):
            segment = self.part((name, rank))
            known = None if segment.summary is None else segment.summary.get("content")
            state.update(f"{name} {rank} {known or content_digest(segment)}".encode())
        return state.hexdigest()

    def stored(self) -> str:
        """What tells it from another trace of its digest, as text: its manifest, and the sizes of its files."""
        files = {f"{name}-rank{rank}": file.size for (name, rank), file in self._files.items()}
        files |= {name: file.size for name, file in self.request_files.items()}
        return json.dumps([self.manifest, files], sort_keys=True, default=str)

    def close(self) -> None:
        for reader in self._open.values():
            reader.close()
        for file in (*self._files.values(), *self.request_files.values()):
            file.close()

    def local_path(self) -> Path:
        """Its local path, for an engine's processes.

        Raises:
            UsageError: it does not.
        """
        if isinstance(self.path, str):
            raise UsageError(f"An engine cannot read {self.path}; download the trace and give its path.")
        return self.path.resolve()

    def offer_base(self, base: Trace) -> None:
        """Takes ``base`` if it is the trace that this one is stored as a difference from."""
        described = self.run.base
        if self._base is None and isinstance(described, dict) and described.get("digest") == base.digest():
            self._base = base

    def from_base(self, segment: str, chunk: int, number: int) -> Bytes:
        """A tensor of the base trace (see `difference`)."""
        return self._the_base().tensor(segment, chunk, number)

    def base_size(self) -> int:
        """Bytes of the base trace; 0 if this one is not stored as a difference."""
        return self._the_base().size if self.manifest["run"].get("base") is not None else 0

    def tensor(self, segment: str, chunk: int, number: int) -> memoryview:
        """The bytes of a stored tensor, by the name of its segment's file and its place in it."""
        match = SEGMENT.fullmatch(segment)
        if match is None:
            raise DamagedTrace(
                f"A segment {segment!r} of {self.path} is referred to, and no trace has one of that name."
            )
        return self.part((match["pass"], int(match["rank"]))).tensor(chunk, number)

    def _the_base(self) -> Trace:
        if self._base is None:
            self._base = self._find_base()
        return self._base

    def _find_base(self) -> Trace:
        described = self.run.base
        name = described.get("name") if isinstance(described, dict) else None
        if not isinstance(described, dict) or not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
            raise DamagedTrace(
                f"{self.path} is stored as a difference from another trace, but does not say which."
            )
        beside = Path(self.path).parent / name if isinstance(self.path, Path) else None
        if beside is None or not exists(beside) or beside.is_symlink():
            raise TraceError(
                f"{self.path} is stored as its difference from {name} (digest {described.get('digest')}), "
                "which is not beside it; put it there."
            )
        base = open_trace(beside)
        _check_base(base, described, self.path)
        return base


def _pass_of(name: str) -> str:
    return name.partition("-")[0]


def _engine_of(name: str) -> int:
    """The number of the engine; the first one's segments do not name it."""
    return int(name.rpartition("-engine")[2]) if "-" in name else 0


def _check_base(base: Trace, described: Mapping[str, Any], path: Path | str) -> None:
    if base.run.base is not None:
        raise TraceError(f"{base.path} is itself stored as a difference; {path} cannot be read from it.")
    found = base.digest()
    if found != described.get("digest"):
        raise TraceError(
            f"{path} is stored as its difference from a trace with the digest {described.get('digest')}; "
            f"{base.path} has {found}."
        )


def open_trace(path: str | os.PathLike[str], base: Trace | None = None) -> Trace:
    """Opens a trace for reading.

    >>> with tracereplay.open_trace("golden.trace") as trace:
    ...     step = next(iter(trace))
    >>> step.number, len(step.rows)
    (0, 5)

    Args:
        path: a directory, a packed file, or a URL of either (which needs fsspec's package for its protocol).
        base: the trace that it is stored as a difference from, if not in the same directory.

    Raises:
        NotATrace: there is no trace at ``path``.
        DamagedTrace: its manifest is damaged.
    """
    where: Path | str = str(path) if "://" in str(path) else Path(path)
    trace = trace_of(source_of(where), where, base)
    if base is not None and isinstance(trace.manifest["run"].get("base"), dict):
        _check_base(base, trace.manifest["run"]["base"], where)
    return trace


def trace_of(source: File | Folder, where: Path | str, base: Trace | None = None) -> Trace:
    """The trace in files that are open already; ``where`` they are is said in messages.

    Raises:
        NotATrace, DamagedTrace: see `open_trace`.
    """
    manifest, segments, asked = files_in(source, where)
    return Trace(where, manifest, segments, base, not isinstance(source, Folder), asked)
