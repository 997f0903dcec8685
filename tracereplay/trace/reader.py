"""Reading one segment: the index comes from the frame headers, tensors are read when asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracereplay.errors import DamagedTrace, TraceError
from tracereplay.event import Site, Step
from tracereplay.trace import codec, records
from tracereplay.trace.frames import Frame, Kind, read_payload, scan

__all__ = ["SegmentReader"]

CACHED_CHUNKS = 16  # at most 64 MiB of ordinary chunks


class SegmentReader:
    """One segment, open for reading.

    Args:
        path: the segment file.

    Raises:
        NotATrace, DamagedTrace: see `frames.scan`.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise TraceError(f"The segment {path} cannot be opened: {error.strerror}.") from error
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._chunks: list[Frame] = []
        self._steps: list[tuple[Frame, int]] = []
        self._names: dict[int, str] = {}
        self.meta: dict[str, Any] = {}
        self.sites: dict[str, Site] = {}
        self.summary: dict[str, Any] | None = None
        for frame in scan(self._file, self.name):
            self._index(frame)

    def _index(self, frame: Frame) -> None:
        if frame.kind == Kind.DATA:
            self._chunks.append(frame)
        elif frame.kind == Kind.STEP:
            self._steps.append((frame, len(self._chunks)))
        elif frame.kind == Kind.META:
            self.meta = self._plain(frame, dict)
        elif frame.kind == Kind.END:
            self.summary = self._plain(frame, dict)
        elif frame.kind == Kind.SITES:
            self._add_sites(self._plain(frame, list))

    def _add_sites(self, data: list[Any]) -> None:
        try:
            for site in map(records.read_site, data):
                self.sites[site.name] = site
                self._names[site.slot] = site.name
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedTrace(f"{self.name} holds a site record that cannot be read: {error!r}.") from error

    def _plain(self, frame: Frame, kind: type) -> Any:
        value = codec.unpack(read_payload(self._file, frame, self.name), self.name)
        if not isinstance(value, kind):
            raise DamagedTrace(f"{self.name} holds {type(value).__name__} where {kind.__name__} belongs.")
        return value

    @property
    def complete(self) -> bool:
        """Whether the writer closed the segment."""
        return self.summary is not None

    def __len__(self) -> int:
        return len(self._steps)

    def step(self, index: int) -> Step:
        """The step at ``index`` in the file."""
        with self._lock:
            data = self._plain(self._steps[index][0], dict)
        return records.read_step(data, self._names, self._load)

    def steps(self) -> Iterator[Step]:
        """All committed steps in order."""
        return (self.step(i) for i in range(len(self._steps)))

    def close(self) -> None:
        self._file.close()

    def _load(self, chunk: int, offset: int, length: int) -> bytes:
        if length == 0:
            return b""  # an empty tensor has no chunk
        data = self._chunk(chunk)
        if offset < 0 or offset + length > len(data):
            raise DamagedTrace(f"{self.name} names bytes {offset}+{length} of a chunk of {len(data)}.")
        return data[offset : offset + length]

    def _chunk(self, index: int) -> bytes:
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
            if not 0 <= index < len(self._chunks):
                raise DamagedTrace(f"{self.name} names chunk {index}; it holds {len(self._chunks)}.")
            frame = self._chunks[index]
            data = codec.decode(read_payload(self._file, frame, self.name), frame.codec, self.name)
            self._cache[index] = data
            if len(self._cache) > CACHED_CHUNKS:
                self._cache.popitem(last=False)
            return data
