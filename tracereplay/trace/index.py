"""The index: where a segment's frames are, so that one call of a large trace is read without the rest.

INDEX frames form a chain from the last to the first. Each has the places of the frames since the one before it, so
that the writer need not remember a long recording.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tracereplay.errors import DamagedTrace
from tracereplay.storage.files import File
from tracereplay.trace.frames import HEADER_SIZE, Frame, Tag, fetch, scan
from tracereplay.trace.limits import Limits
from tracereplay.trace.plain import decode_record, unpack

__all__ = ["Index", "IndexBuilder", "indexed", "scanned"]

EVERY = 4096  # chunks and steps; an INDEX frame of some 50 kB
_ENTRY = 32  # bytes that an entry takes at most


@dataclass(slots=True)
class IndexBuilder:
    """What the next INDEX frame will say.

    Args:
        sites: offset and length of SITES frames.
        chunks: offset, length and decoded size of DATA frames.
        steps: number of the step, offset and length of its STEP frame.
        last: where the INDEX frame before begins; 0 if there is none.
        before: how many chunks and steps the INDEX frames before have.
    """

    sites: list[tuple[int, int]] = field(default_factory=list)
    chunks: list[tuple[int, int, int]] = field(default_factory=list)
    steps: list[tuple[int, int, int]] = field(default_factory=list)
    last: int = 0
    before: tuple[int, int] = (0, 0)

    @property
    def all_chunks(self) -> int:
        """How many chunks there are in the segment."""
        return self.before[0] + len(self.chunks)

    @property
    def all_steps(self) -> int:
        """How many steps there are in the segment."""
        return self.before[1] + len(self.steps)

    def due(self) -> bool:
        """Whether there is enough for a frame."""
        return len(self.chunks) + len(self.steps) >= EVERY

    def room(self) -> int:
        """Bytes that the frame would take, at most."""
        return _ENTRY * (len(self.sites) + len(self.chunks) + len(self.steps))

    def keep_chunks(self, count: int) -> None:
        """Forgets the chunks after the first ``count`` of the segment."""
        del self.chunks[count - self.before[0] :]

    def take(self) -> dict[str, Any]:
        """The record, after which the builder is empty."""
        record = {"previous": self.last, "sites": self.sites, "chunks": self.chunks, "steps": self.steps}
        self.before = (self.all_chunks, self.all_steps)
        self.sites, self.chunks, self.steps = [], [], []
        return record


@dataclass(slots=True)
class Index:
    """All of a segment's frames, in order; see `IndexBuilder`.

    Args:
        seen: for each step, how many chunks stand before its STEP frame.
        end: the END frame, if the segment was closed.
        at: where the last whole frame ends, bytes.
    """

    sites: list[tuple[int, int]] = field(default_factory=list)
    chunks: list[tuple[int, int, int]] = field(default_factory=list)
    steps: list[tuple[int, int, int]] = field(default_factory=list)
    end: tuple[int, int] | None = None
    at: int = 0


def indexed(file: File, last: int, limits: Limits) -> Index:
    """The index of a closed segment, read from its INDEX frames.

    Args:
        file: the segment.
        last: where the last INDEX frame begins.
        limits: what reading it may cost.

    Raises:
        DamagedTrace: the chain is broken, or leads forward, or frames are named twice.
    """
    chain = []
    before = file.size
    while last:
        if not 0 < last < before:
            raise DamagedTrace(f"{file.name} is damaged: its index leads from byte {before} to byte {last}.")
        frame, payload = fetch(file, last, 1 << 16, Tag.INDEX)
        if frame.end > before:
            raise DamagedTrace(f"{file.name} is damaged: frames of its index overlap at byte {last}.")
        before = last
        limits.record(last, frame.size)
        record = unpack(decode_record(payload, frame.codec, frame.size, file.name), file.name)
        chain.append(record)
        try:
            last = int(record["previous"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedTrace(f"{file.name} has an index that cannot be read: {error!r}.") from error
    found = Index()
    try:
        for record in reversed(chain):
            found.sites += [(int(o), int(n)) for o, n in record["sites"]]
            found.chunks += [(int(o), int(n), int(s)) for o, n, s in record["chunks"]]
            found.steps += [(int(i), int(o), int(n)) for i, o, n in record["steps"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedTrace(f"{file.name} has an index that cannot be read: {error!r}.") from error
    _check_places(file, found)
    return found


def _check_places(file: File, found: Index) -> None:
    """Raises DamagedTrace unless the frames of each kind stand one after the other in the file."""
    places = {
        "sites": [(offset, length) for offset, length in found.sites],
        "chunks": [(offset, length) for offset, length, _ in found.chunks],
        "steps": [(offset, length) for _, offset, length in found.steps],
    }
    for kind, frames in places.items():
        end = 0
        for offset, length in frames:
            if offset < end or length < 0 or offset + HEADER_SIZE + length > file.size:
                raise DamagedTrace(
                    f"{file.name} is damaged: its index lists {kind} out of order at byte {offset}."
                )
            end = offset + HEADER_SIZE + length


def scanned(file: File) -> Index:
    """The index of a segment that was cut off, found from frame to frame.

    Numbers of steps are their places, since their records are not read.
    """
    found = Index()
    for frame in scan(file):
        _add(found, frame)
    return found


def _add(found: Index, frame: Frame) -> None:
    place = (frame.offset, frame.length)
    if frame.kind == Tag.DATA:
        found.chunks.append((*place, frame.size))
    elif frame.kind == Tag.STEP:
        found.steps.append((len(found.steps), *place))
    elif frame.kind == Tag.SITES:
        found.sites.append(place)
    elif frame.kind == Tag.END:
        found.end = place
    found.at = frame.end
