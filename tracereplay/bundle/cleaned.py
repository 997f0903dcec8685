"""A trace anew, with what `allowed` lets be told of it; its tensors, rows and tokens stay as they are.

    trace ─▶ manifest, each segment's META, SITES and STEP frames ─▶ packed trace

Files that say who asked are left out, as are the engine's ids of requests and a checkpoint's tensors.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tracereplay.bundle.allowed import GONE, Cleaner
from tracereplay.errors import DamagedTrace, UsageError
from tracereplay.storage.files import PRIVATE, File, LocalFile
from tracereplay.trace import Trace, codec
from tracereplay.trace.append import Appender
from tracereplay.trace.directory import WEIGHTS, segment_path
from tracereplay.trace.frames import Tag
from tracereplay.trace.into_pack import STRONG_LEVEL
from tracereplay.trace.manifest import FORMAT
from tracereplay.trace.packfile import write_pack
from tracereplay.trace.plain import pack, unpack
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.records import WRONG
from tracereplay.trace.rewrite import by_region

__all__ = ["kernels_of", "write_cleaned"]

_LARGE = 64 << 20  # bytes of a trace that is not compressed as strongly as can be, since that takes minutes
_KEPT = ("ended", "dropped", "weights", "interrupted", "lacking", "lacking_count", "paused")  # of an END frame


def write_cleaned(
    trace: Trace, out: Path, cleaner: Cleaner, renamed: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Writes a trace as one file.

    Args:
        trace: complete or interrupted, and not encrypted.
        out: file to create.
        cleaner: says what is told of it.
        renamed: digests of golden traces, by what they were before they were cleaned.

    Raises:
        UsageError: ``out`` cannot be written.
        TraceError: ``trace`` cannot be read.
    """
    if trace.sealed:
        raise UsageError(f"{trace.path} is encrypted, and a bundle is for others to read; give one that is not.")
    level = STRONG_LEVEL if trace.size < _LARGE else 6
    manifest = {
        "format": FORMAT, "state": "complete" if trace.said_complete else "incomplete",
        "run": _run(trace, cleaner, renamed),
        "passes": {name: _pass(said, cleaner) for name, said in trace.results.items()},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tracereplay-clean-") as scratch:
        segments: dict[str, File] = {}
        for key in trace.parts:
            if key[0] != WEIGHTS:
                path = segment_path(Path(scratch), *key)
                _write_segment(trace.part(key), path, cleaner, level)
                segments[path.name] = LocalFile(path)
        write_pack(out, manifest, segments)


# -- the manifest -------------------------------------------------------------------------------------------


def _run(trace: Trace, cleaner: Cleaner, renamed: Mapping[str, str]) -> dict[str, Any]:
    """The run of a manifest. What is not named here is left out."""
    said = trace.raw_run
    served = "command" in said
    run: dict[str, Any] = {}
    for name in ("tracereplay", "kind", "level"):
        if name in said:
            run[name] = cleaner.word(str(said[name]), "facts of recordings")
    run |= {name: time for name in ("began", "ended") if (time := cleaner.time(said.get(name))) is not None}
    if (golden := cleaner.digest(said.get("golden"))) is not None:
        run["golden"] = renamed.get(golden, golden)
    if isinstance(said.get("engine"), Mapping):
        run["engine"] = cleaner.engine(said["engine"])
    if isinstance(said.get("workload"), Mapping):
        run["workload"] = _workload(said["workload"], cleaner, served=served)
    if served:
        cleaner.note([str(word) for word in said["command"] or ()], "words of command lines")
        run["command"] = [GONE]
    if isinstance(said.get("recorded"), Mapping):
        run["recorded"] = cleaner.plain(said["recorded"], "names in what was recorded", texts=True)
    if isinstance(said.get("checkpoint"), Mapping):
        run["checkpoint"] = cleaner.plain(said["checkpoint"], "names of tensors", texts=True)
    if isinstance(said.get("model_files"), Mapping):
        run["model_files"] = cleaner.model_files(said["model_files"])
    if isinstance(said.get("withheld"), Mapping):
        run["withheld"] = cleaner.plain(said["withheld"], "keys", texts=True)
    if isinstance(said.get("reduced"), Mapping):
        run["reduced"] = cleaner.plain(said["reduced"], "facts of recordings", texts=True)
    if isinstance(said.get("trigger"), Mapping):
        run["trigger"] = _trigger(said["trigger"], cleaner)
    if isinstance(said.get("observer"), Mapping):
        run["observer"] = cleaner.plain(said["observer"], "facts of recordings", texts=False)
    if isinstance(said.get("not_replayed"), list):
        run["not_replayed"] = [list(_left_out(row, cleaner)) for row in said["not_replayed"]]
    run["notes"] = [cleaner.sentence(str(note)) for note in said.get("notes") or ()]
    return run


def _workload(said: Mapping[str, Any], cleaner: Cleaner, *, served: bool) -> dict[str, Any]:
    settings = said.get("settings")
    return {
        "model": cleaner.model(said["model"], served=served),
        "prompts": [cleaner.prompt(prompt) for prompt in said["prompts"]],
        "settings": cleaner.given(settings if isinstance(settings, Mapping) else {}),
        "weights": cleaner.digest(said.get("weights")),
    }


def _trigger(said: Mapping[str, Any], cleaner: Cleaner) -> dict[str, Any]:
    """What set off a recording, without its words, which may quote tokens and errors."""
    cleaner.note(said.get("detail"), "words of triggers")
    numbers = {name: value for name, value in said.items() if type(value) is int}
    kind, time = cleaner.word(str(said.get("kind", "")), "triggers"), cleaner.time(said.get("time"))
    return {**numbers, "kind": kind, "detail": "", "time": time or ""}


def _left_out(row: Any, cleaner: Cleaner) -> Iterator[Any]:
    """Site, calls, rows and reason of what an isolated replay left out."""
    for part in row if isinstance(row, list) else ():
        yield cleaner.sentence(part) if isinstance(part, str) else part


def _pass(said: Mapping[str, Any], cleaner: Cleaner) -> dict[str, Any]:
    """What an engine returned for a pass."""
    found: dict[str, Any] = {}
    for name, value in said.items():
        if name == "requests" and isinstance(value, list):
            found[name] = [cleaner.result(one) for one in value if isinstance(one, Mapping)]
        elif name == "ranks" and isinstance(value, list):
            found[name] = [_rank(one, cleaner) for one in value]
        elif isinstance(value, bool | int | float):
            found[name] = value
        else:
            cleaner.note(value, "facts of recordings")
    return found


def _rank(said: Any, cleaner: Cleaner) -> Any:
    if not isinstance(said, Mapping):
        return None
    found: dict[str, Any] = {
        name: value for name, value in said.items() if value is None or isinstance(value, bool | int | float)
    }
    errors = said.get("errors")
    if isinstance(errors, Mapping):
        found["errors"] = {cleaner.sentence(str(text)): count for text, count in errors.items()}
    if isinstance(said.get("ended"), str):
        found["ended"] = cleaner.word(said["ended"], "reasons")
    return found


# -- a segment ----------------------------------------------------------------------------------------------


def _write_segment(segment: SegmentReader, out: Path, cleaner: Cleaner, level: int) -> None:
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, PRIVATE)
        try:
            _copy(segment, Appender(fd, codec.Encoder(codec.STRONG, level)), cleaner)
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}.") from error


def _copy(segment: SegmentReader, to: Appender, cleaner: Cleaner) -> None:
    to.magic()
    for frame, number, decoded in segment.frames():
        if frame.kind == Tag.DATA:
            chunk, entries = segment.chunk(number)
            start = bytes(chunk[: min((e.start for e in entries), default=len(chunk))])
            to.chunk(start, by_region(entries, [chunk[e.start : e.end] for e in entries]))
        elif frame.kind in (Tag.META, Tag.SITES, Tag.STEP):
            _record(segment, to, Tag(frame.kind), number, unpack(bytes(decoded), segment.name), cleaner)
    if segment.summary is not None:
        kept = {
            name: cleaner.plain(segment.summary[name], "facts of recordings", texts=True)
            for name in _KEPT
            if name in segment.summary
        }
        outline = {name: value for name, value in segment.written_outline().items() if name != "ids"}
        to.end({**kept, "outline": outline})
        to.sync()


def _record(segment: SegmentReader, to: Appender, kind: Tag, number: int, data: Any, cleaner: Cleaner) -> None:
    try:
        if kind == Tag.META:
            to.record(kind, _meta(data, cleaner))
        elif kind == Tag.SITES:
            paths = {str(site["name"]) for site in data}
            to.record(kind, [{**site, "config": cleaner.operator(site.get("config", {}), paths)} for site in data])
        else:
            step = _step(data, cleaner)
            to.step(step, segment.index.first_chunk(number), pack(step))
    except WRONG as error:
        raise DamagedTrace(f"{segment.name} holds a record that cannot be read: {error!r}.") from error


def _meta(said: Mapping[str, Any], cleaner: Cleaner) -> dict[str, Any]:
    """What a segment says of its process."""
    found: dict[str, Any] = {}
    for name, value in said.items():
        if name == "engine" and isinstance(value, Mapping):
            found[name] = cleaner.engine(value)
        elif name == "model":
            found[name] = cleaner.model(value, served=True)
        elif name == "trigger" and isinstance(value, Mapping):
            found[name] = _trigger(value, cleaner)
        elif name == "pass":
            found[name] = cleaner.word(value, "names of passes")
        elif value is None or isinstance(value, bool | int | float):
            found[name] = value
        else:
            cleaner.note(value, "facts of recordings")
    return found


def _step(said: Mapping[str, Any], cleaner: Cleaner) -> dict[str, Any]:
    found = {name: value for name, value in said.items() if name != "ids"}
    cleaner.note([name for name in said.get("ids") or () if name], "ids of requests")
    found["notes"] = [cleaner.sentence(str(note)) for note in said["notes"]]
    found["requests"] = [[*one[:3], cleaner.sampling(one[3])] for one in said["requests"]]
    if isinstance(said.get("kernels"), Mapping):
        found["kernels"] = kernels_of(said["kernels"], cleaner)
    return found


def kernels_of(said: Mapping[str, Any], cleaner: Cleaner) -> dict[str, Any]:
    """Kernels whose arguments in words are words; what one of them failed with is a sentence of somebody's."""
    calls = [
        [*call[:4], [_argument(a, cleaner) for a in call[4]],
         {name: _argument(a, cleaner) for name, a in call[5].items()}, [_argument(a, cleaner) for a in call[6]],
         *call[7:9], cleaner.sentence(str(call[9])), *call[10:]]
        for call in said["calls"]
    ]  # fmt: skip
    return {**said, "calls": calls}


def _argument(said: Any, cleaner: Cleaner) -> Any:
    """An argument as `trace.kernels` writes it."""
    if isinstance(said, str):
        return cleaner.word(said, "arguments of kernels") if said else said
    if isinstance(said, list) and said:
        kind, *rest = said
        if kind == "l":
            return [kind, [_argument(part, cleaner) for part in rest[0]]]
        if kind == "x":
            return [kind, *rest[:2], cleaner.sentence(str(rest[2]))]
        if kind == "o" and rest[1]:
            return [kind, rest[0], cleaner.word(rest[1], "arguments of kernels"), *rest[2:]]
    return said
