"""Checking every byte of a trace, and rebuilding the index of an interrupted recording.

complete      closed, and every frame is intact
recoverable   not closed; every committed step is intact
damaged       at least one frame is not intact
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

from tracereplay.errors import DamagedTrace, TraceError, UsageError
from tracereplay.event import Step, Value
from tracereplay.storage.files import File
from tracereplay.trace import requests
from tracereplay.trace.append import Appender
from tracereplay.trace.codec import PLANES, Encoder
from tracereplay.trace.digest import count_content
from tracereplay.trace.directory import MANIFEST, refuse_live, replace_manifest, segment_path
from tracereplay.trace.frames import MAGIC, Frame, Tag, scan
from tracereplay.trace.kernels import Kernels
from tracereplay.trace.manifest import FORMAT
from tracereplay.trace.open import Trace, open_trace
from tracereplay.trace.outline import Outline
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.served import is_whole, told_by_segments
from tracereplay.trace.writer import GONE

__all__ = ["SegmentReport", "check_segment", "repair", "verify"]

_WORDS: Mapping[int, str] = {Tag.SITES: "list of sites", Tag.FORM: "form", Tag.DATA: "chunk", Tag.STEP: "step"}
State = Literal["complete", "recoverable", "damaged"]


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """What was found of a segment.

    Args:
        name: of its file.
        steps: whole ones.
        frames: whole ones.
        size: of the file, bytes.
        kept: bytes up to the last whole frame.
        problem: what is wrong and where, as a sentence; None if nothing is.
        dropped: steps that the recorder says it dropped under pressure.
        lacking: requests that it says are not whole.
    """

    name: str
    state: State
    steps: int
    frames: int
    size: int
    kept: int
    problem: str | None = None
    dropped: int = 0
    lacking: int = 0


def verify(trace: Trace) -> Iterator[SegmentReport]:
    """Reports on each segment in turn, reading all of it."""
    for name, rank in trace.parts:
        yield check_segment(trace, segment_path(Path(), name, rank).name, trace.file((name, rank)))
    for name, file in trace.request_files.items():
        yield check_requests(trace, name, file)


def check_requests(trace: Trace, name: str, file: File) -> SegmentReport:
    """Reads all of a file that says who asked. Its processes end as they like, so that it has no end mark."""
    stated = trace.manifest["run"].get("requests")
    said = stated.get(name) if isinstance(stated, dict) else None
    try:
        frames, end, lost = requests.checked(file, said if said is None or isinstance(said, dict) else {})
    except TraceError as error:
        return SegmentReport(name, "damaged", 0, 0, file.size, 0, str(error))
    torn = file.size - end
    if torn:
        problem = f"Its process was ended while it wrote: {torn} bytes of an unfinished record follow byte {end}."
        return SegmentReport(name, "recoverable", 0, frames, file.size, end, problem)
    told = f"{name}: {lost} records of who asked could not be written." if lost else None
    return SegmentReport(name, "complete", 0, frames, file.size, end, told)


def check_segment(trace: Trace, name: str, file: File) -> SegmentReport:
    """Reads all of a segment: every checksum, every tensor, the index and the content digest."""
    seen = _Seen()
    try:
        for frame in scan(file):
            seen.add(frame)
        segment = SegmentReader(file, trace.from_base, trace.base_size)
        _check(segment)
    except TraceError as error:
        return SegmentReport(name, "damaged", seen.steps, seen.frames, file.size, seen.end, str(error))
    closed = segment.summary is not None and not segment.summary.get("interrupted")
    return SegmentReport(
        name, "complete" if closed else "recoverable", seen.steps, seen.frames, file.size, seen.end,
        None if closed else _interrupted(segment, seen.end), _count(segment, "dropped"),
        _count(segment, "lacking_count"),
    )  # fmt: skip


@dataclass(slots=True)
class _Seen:
    """How far the headers of a segment's frames can be followed: whole frames, steps among them, their end."""

    frames: int = 0
    steps: int = 0
    end: int = 0

    def add(self, frame: Frame) -> None:
        self.frames += 1
        self.steps += frame.kind == Tag.STEP
        self.end = frame.end


def _interrupted(segment: SegmentReader, end: int) -> str:
    if segment.summary is not None and segment.summary.get("ended") == GONE:
        return "The recording was interrupted: its engine was gone before it reported its end."
    if segment.summary is not None:
        return "The recording was interrupted; its index was rebuilt."
    torn = segment.file.size - end
    more = f"; {torn} bytes of an unfinished frame follow" if torn else ""
    return f"The recording was interrupted: it has no end mark after byte {end}{more}."


def _count(segment: SegmentReader, name: str) -> int:
    found = (segment.summary or {}).get(name, 0)
    return found if type(found) is int else 0


def _check(segment: SegmentReader) -> None:
    """Raises DamagedTrace at the first thing that is not as it was written."""
    state, outline = xxhash.xxh3_128(), Outline()
    index = segment.index
    listed = {Tag.SITES: index.sites, Tag.FORM: index.forms, Tag.DATA: index.chunks, Tag.STEP: index.steps}
    found: Counter[Tag] = Counter()
    for frame, number, decoded in segment.frames():
        count_content(state, frame.kind, decoded)
        if frame.kind in listed:
            _expect(segment, number, frame, listed[Tag(frame.kind)])
            found[Tag(frame.kind)] += 1
        if frame.kind == Tag.FORM and segment.copied_form(number) not in (None, decoded):
            raise DamagedTrace(f"{segment.name} is damaged: its end mark repeats another form {number}.")
        if frame.kind == Tag.STEP:
            step = segment.record(number)
            outline.add(
                step.number, step.rows, len(step.sampled), step.form, step.form.sites, step.requests, step.company
            )
            for value in {id(value): value for value in values_of(segment.step(number))}.values():
                value.load()
    stated = None if segment.summary is None else segment.summary.get("content")
    if stated is not None and stated != state.hexdigest():
        raise DamagedTrace(f"{segment.name} is damaged: its frames are not those that its end mark describes.")
    if any(len(places) != found[kind] for kind, places in listed.items()):
        raise DamagedTrace(f"{segment.name} is damaged: its index names frames that do not exist.")
    if outline.done() != segment.outline():
        raise DamagedTrace(f"{segment.name} is damaged: its end mark does not describe its steps.")


def _expect(segment: SegmentReader, number: int, frame: Frame, places: Sequence[tuple[int, ...]]) -> None:
    known = number < len(places) and frame.offset in places[number]
    if not known:
        raise DamagedTrace(
            f"{segment.name} is damaged: {_WORDS[frame.kind]} {number} at byte {frame.offset} is not in its index."
        )


def values_of(step: Step) -> Iterator[Value]:
    """Each value of a step, once for each call and kernel that has it."""
    for call in step.calls:
        yield from call.inputs
        yield from call.outputs
        yield from call.written.values()
    if isinstance(step.kernels, Kernels):
        yield from step.kernels.values()


def repair(trace: Trace) -> list[str]:
    """Gives each interrupted segment of a local directory an index and an end mark that says so, and the manifest
    of a recorded command what its parent, which was killed, left out.

    No step is made up: what follows the last whole frame is cut off, all else stays byte for byte.

    Returns:
        Names of the files that were repaired.

    Raises:
        UsageError: the trace is packed or not on this machine, or it is being recorded.
        DamagedTrace: a frame is not what was written; an index cannot mend that.
    """
    if trace.packed or not isinstance(trace.path, Path):
        raise UsageError(f"{trace.path} cannot be repaired in place; copy it to a local directory.")
    refuse_live(trace.path)
    repaired = []
    for key in trace.parts:
        path = segment_path(trace.path, *key)
        report = check_segment(trace, path.name, trace.file(key))
        if report.state == "damaged":
            raise DamagedTrace(report.problem or f"{path.name} is damaged.")
        if report.frames and trace.part(key).summary is None:
            _close(path, trace)
            repaired.append(path.name)
    changed = {"format": FORMAT} if repaired else {}  # which segments have that get this version's index
    return [*repaired, *_finish_manifest(open_trace(trace.path), trace.path, changed)]


def _finish_manifest(trace: Trace, path: Path, changed: Mapping[str, Any]) -> list[str]:
    """Writes what has changed, and what the segments say of a command whose parent was killed; returns the file's
    name if there is anything to write."""
    if told_by_segments(trace.manifest):
        whole = "command" in trace.manifest["run"] and is_whole(trace)
        changed = {**changed, "run": trace.raw_run, "state": "complete" if whole else "incomplete"}
    said = {**trace.manifest, **changed}
    if said == trace.manifest:
        return []
    del said["check"]
    try:
        replace_manifest(path, said)
    except OSError as error:
        raise UsageError(f"{path / MANIFEST} cannot be repaired: {error.strerror}.") from error
    return [MANIFEST]


def _close(path: Path, trace: Trace) -> None:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a writer's, for as long as it writes
        except BlockingIOError:
            refuse_live(path)
            raise
        found = SegmentReader(path, trace.from_base, trace.base_size)
        to = Appender(fd, Encoder(PLANES), seal=found.seal)
        to.cut(max(found.index.at, len(MAGIC)))
        segment = SegmentReader(path, trace.from_base, trace.base_size)  # it ends here, whatever is written behind
        for frame, number, decoded in segment.frames():
            count_content(to.content, frame.kind, decoded)
            step = segment.record(number).number if frame.kind == Tag.STEP else 0
            to.index.add(frame.kind, frame.length, frame.size, step)
            if to.index.due():
                to.write_index()
        to.end({"interrupted": True, "outline": segment.written_outline()})
        to.sync()
    except OSError as error:
        raise UsageError(f"{path} cannot be repaired: {error.strerror}.") from error
    finally:
        os.close(fd)
