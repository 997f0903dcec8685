"""Reading one segment: the index says where frames are, tensors are read on demand."""

from __future__ import annotations

import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tracereplay.dtypes import itemsize, nbytes
from tracereplay.errors import DamagedTrace
from tracereplay.event import Site, Step
from tracereplay.storage.files import File, LocalFile
from tracereplay.trace import records
from tracereplay.trace.chunk import Bytes, Entry
from tracereplay.trace.codec import decode_chunk
from tracereplay.trace.dedup import strided_bytes
from tracereplay.trace.difference import Base
from tracereplay.trace.form_records import is_whole
from tracereplay.trace.forms import Forms, StepRecord
from tracereplay.trace.frames import Frame, Tag, check_magic, end_of, fetch, scan, unlocked
from tracereplay.trace.index import Index, chained, indexed, scanned
from tracereplay.trace.limits import Limits
from tracereplay.trace.outline import Outline, read_outline, write_outline
from tracereplay.trace.plain import as_place, decode_record, pack, unpack
from tracereplay.trace.records import Located
from tracereplay.trace.sealed import Seal, SealedFile

__all__ = ["SegmentReader"]

# Bytes of decoded chunks that are kept: of a small file more than it may have, so that no order of reading is
# slow; of others what lies around the values of a call.
SMALL, CACHED, CACHED_OF_LARGE = 1 << 20, 72 << 20, 16 << 20
_ASIDE = 1 << 10  # bytes that a chunk takes in memory besides its own
_DIGEST = re.compile("[0-9a-f]{32}")
_GUESS = 4 << 10  # bytes of a record that is read before its length is known


class SegmentReader:
    """One segment, open for reading.

    Args:
        source: the segment.
        base: where tensors are found that are stored as a difference from another trace.
        base_size: gives the bytes of that trace, 0 if there is none.

    Raises:
        NotATrace, DamagedTrace: see `frames`.
    """

    def __init__(
        self, source: Path | File, base: Base | None = None, base_size: Callable[[], int] | None = None
    ) -> None:
        file: File = LocalFile(source) if isinstance(source, Path) else source
        check_magic(file)
        self.file, self._start = unlocked(file)
        self.name = self.file.name
        self._base = base
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, tuple[memoryview, list[Entry]]] = OrderedDict()
        self._cached = 0
        self._most = CACHED if self.file.size < SMALL else CACHED_OF_LARGE
        self._names: dict[int, str] = {}
        self._forms = Forms(self._names, self._form)
        self._copied: dict[int, bytes] = {}
        self.meta: dict[str, Any] = {}
        self.sites: dict[str, Site] = {}
        self.summary: dict[str, Any] | None = None
        self._outline: Outline | None = None
        self._limits = Limits(self.file, base_size)
        self.index = self._find_index()
        self._read_meta()
        for offset, length in self.index.sites:
            self._add_sites(self._record(offset, length, Tag.SITES, list))

    def _find_index(self) -> Index:
        end = end_of(self.file)
        if end is None:
            return scanned(self.file, self._limits)
        summary = self._record(end, _GUESS, Tag.END, dict)
        if "indexes" in summary:
            found = indexed(self.file, end, summary, self._limits)
            self._copied = _copied_forms(summary, self.name)
        else:
            found = chained(self.file, _number(summary, "index", self.name), self._limits)
        if len(found.steps) != _number(summary, "steps", self.name):
            raise DamagedTrace(
                f"{self.name} is damaged: its index has {len(found.steps)} steps, but its end mark does not."
            )
        content = summary.get("content")
        if content is not None and not (isinstance(content, str) and _DIGEST.fullmatch(content)):
            raise DamagedTrace(f"{self.name} is damaged: its end mark has no digest where one belongs.")
        self.summary = summary
        return found

    def _read_meta(self) -> None:
        """The first frame, unless the recording ended before it was whole."""
        if self.summary is None and self.index.at <= self._start:
            return
        self.meta = self._record(self._start, _GUESS, Tag.META, dict)

    def _add_sites(self, data: list[Any]) -> None:
        try:
            for site in map(records.read_site, data):
                self.sites[site.name] = site
                self._names[site.slot] = site.name
        except records.WRONG as error:
            raise DamagedTrace(f"{self.name} holds a site record that cannot be read: {error!r}.") from error

    def _record(self, offset: int, length: int, kind: Tag, expected: type) -> Any:
        frame, payload = fetch(self.file, offset, length, kind)
        self._limits.record(offset, frame.size)
        return self._unpacked(frame, payload, expected)

    def _unpacked(self, frame: Frame, payload: bytes, expected: type) -> Any:
        value = unpack(decode_record(payload, frame.codec, frame.size, self.name), self.name)
        if not isinstance(value, expected):
            raise DamagedTrace(f"{self.name} holds {type(value).__name__} where {expected.__name__} belongs.")
        return value

    def _step_record(self, place: int) -> dict[str, Any]:
        """The contents of a STEP frame."""
        _, offset, length = self.index.steps[place]
        frame, payload = fetch(self.file, offset, length, Tag.STEP)
        self._limits.step_record(place, frame.size)
        found: dict[str, Any] = self._unpacked(frame, payload, dict)
        return found

    @property
    def seal(self) -> Seal | None:
        """The key with which its frames are sealed; None: they are not."""
        return self.file.seal if isinstance(self.file, SealedFile) else None

    @property
    def complete(self) -> bool:
        """Whether the writer closed the segment (and not `verify.repair` in its place)."""
        return self.summary is not None and not self.summary.get("interrupted")

    def __len__(self) -> int:
        return len(self.index.steps)

    def step(self, place: int) -> Step:
        """The step at ``place`` in the file."""
        check = partial(self._limits.kernels, place)
        step = records.read_step(self._whole(place, self._step_record(place)), self._names, self.load, check)
        self._limits.step(place, step)
        return step

    def _whole(self, place: int, data: dict[str, Any]) -> dict[str, Any]:
        """A step's record in one piece, whatever of it a form says."""
        found, size = self._forms.whole(data)
        self._limits.whole(place, size)
        return found

    def record(self, place: int) -> StepRecord:
        """The step at ``place`` by its form, without its kernels: a hundredth of the work."""
        data = self._step_record(place)
        found = self._forms.read(place, data, self.index.first_chunk(place) if is_whole(data) else 0)
        self._limits.form(place, found.size)
        return found

    def copied_form(self, number: int) -> bytes | None:
        """The contents of the nth FORM frame, if the END frame repeats them."""
        return self._copied.get(number)

    def _form(self, number: int) -> tuple[dict[str, Any], int]:
        """The contents of the nth FORM frame, and their size in bytes, decoded."""
        data = self._copied.get(number)
        if data is None:
            if number >= len(self.index.forms):
                raise DamagedTrace(f"{self.name} names form {number}; it holds {len(self.index.forms)}.")
            offset, length = self.index.forms[number]
            frame, payload = fetch(self.file, offset, length, Tag.FORM)
            self._limits.again(frame.size)
            data = decode_record(payload, frame.codec, frame.size, self.name)
        else:
            self._limits.again(len(data))
        found = unpack(data, self.name)
        if not isinstance(found, dict):
            raise DamagedTrace(f"{self.name} holds {type(found).__name__} where a form belongs.")
        return found, len(data)

    def place_of(self, number: int) -> int | None:
        """Where the step of that number is; None: there is none."""
        if self.summary is None:  # found by a scan, which does not read the steps' numbers
            return next((step.place for step in self.records() if step.number == number), None)
        return self.index.place_of(number)

    def steps(self) -> Iterator[Step]:
        """All committed steps in order."""
        return (self.step(i) for i in range(len(self)))

    def records(self) -> Iterator[StepRecord]:
        """All committed steps in order, by their forms: for who wants rows and tokens, and few tensors or none."""
        return (self.record(i) for i in range(len(self)))

    def outline(self) -> Outline:
        """Its steps in short."""
        told = (self.summary or {}).get("outline")
        if self._outline is None and told is not None:
            try:
                self._outline = read_outline(told, len(self), self._names)
            except records.WRONG as error:
                raise DamagedTrace(f"{self.name} has an end mark that cannot be read: {error!r}.") from error
        if self._outline is None:
            found = Outline()
            for step in self.records():
                found.add(
                    step.number,
                    step.rows,
                    len(step.sampled),
                    step.form,
                    step.form.sites,
                    step.requests,
                    step.company,
                )
            self._outline = found.done()
        return self._outline

    def written_outline(self) -> dict[str, Any]:
        """The same as another segment's END frame would have it."""
        return write_outline(self.outline(), {name: site.slot for name, site in self.sites.items()})

    def chunk(self, number: int) -> tuple[memoryview, list[Entry]]:
        """A chunk's bytes and where its tensors lie in them.

        Raises:
            DamagedTrace: there is no such chunk, or it cannot be read.
        """
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
        data = self._decoded(number)
        with self._lock:
            if number not in self._cache:
                self._cache[number] = data
                self._cached += data[0].nbytes + _ASIDE
            while self._cached > self._most and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1][0].nbytes + _ASIDE
        return data

    def read_chunk(self, number: int) -> tuple[memoryview, list[Entry]]:
        """As `chunk`, for a reader who keeps what it needs of it."""
        return self._decoded(number)

    def frames(self) -> Iterator[tuple[Frame, int, bytes | memoryview]]:
        """All frames from the first to the last: each with its number among those of its kind, and its decoded
        payload (nothing for kinds that this version does not know); of a step, its record in one piece."""
        numbers: Counter[int] = Counter()
        for frame in scan(self.file):
            number = numbers[frame.kind]
            numbers[frame.kind] += 1
            if frame.kind == Tag.DATA:
                yield frame, number, self.chunk(number)[0]
            else:
                yield frame, number, self.told(frame, number, numbers[Tag.FORM])

    def told(self, frame: Frame, number: int, forms: int = 0) -> bytes:
        """A record's msgpack bytes (nothing for kinds that this version does not know); of a step, in one piece.

        Args:
            frame: its header.
            number: of the frame among those of its kind.
            forms: how many FORM frames stand before it.
        """
        if frame.kind not in (Tag.META, Tag.SITES, Tag.STEP, Tag.FORM, Tag.INDEX, Tag.END):
            return b""
        opened, payload = fetch(self.file, frame.offset, frame.length, Tag(frame.kind))
        if frame.kind == Tag.STEP:
            self._limits.step_record(number, frame.size)
        else:
            self._limits.record(frame.offset, frame.size)
        data = decode_record(payload, opened.codec, frame.size, self.name)
        if frame.kind == Tag.STEP and b"\xa4form" in data:
            step = unpack(data, self.name)
            if isinstance(step, dict) and not is_whole(step):
                if not isinstance(step["form"], int) or step["form"] >= forms:
                    raise DamagedTrace(
                        f"{self.name} is damaged: step {number} names form {step['form']}, before which there are "
                        f"{forms}."
                    )
                return pack(self._whole(number, step))
        return data

    def chunk_frame(self, number: int) -> tuple[Frame, bytes]:
        """A chunk as it is stored."""
        if type(number) is not int or not 0 <= number < len(self.index.chunks):
            raise DamagedTrace(f"{self.name} names chunk {number}; it holds {len(self.index.chunks)}.")
        offset, length, _ = self.index.chunks[number]
        return fetch(self.file, offset, length, Tag.DATA)

    def close(self) -> None:
        self.file.close()

    def _decoded(self, number: int, only: int | None = None) -> tuple[memoryview, list[Entry]]:
        frame, payload = self.chunk_frame(number)
        if frame.size != self.index.chunks[number][2]:
            raise DamagedTrace(f"{self.name} is damaged: its index has another size of chunk {number}.")
        return decode_chunk(payload, frame.codec, frame.size, self.name, self._base, only)

    def tensor(self, chunk: int, number: int) -> memoryview:
        """The bytes of a chunk's tensor."""
        data, entries = self.chunk(chunk)
        if type(number) is not int or not 0 <= number < len(entries):
            raise DamagedTrace(f"{self.name} names tensor {number} of a chunk that holds {len(entries)}.")
        return data[entries[number].start : entries[number].end]

    def tensor_alone(self, chunk: int, number: int) -> memoryview:
        """As `tensor`, for a reader who wants nothing else of the chunk: only words of its size are decoded."""
        with self._lock:
            known = chunk in self._cache
        if known:
            return self.tensor(chunk, number)
        data, entries = self._decoded(chunk, number)
        if not 0 <= number < len(entries):
            raise DamagedTrace(f"{self.name} names tensor {number} of a chunk that holds {len(entries)}.")
        return data[entries[number].start : entries[number].end]

    def load(self, located: Located) -> bytes:
        """A value's contiguous bytes.

        Args:
            located: as a `StepRecord` says, with the number of its chunk in the segment.
        """
        size = nbytes(located.dtype, located.shape)
        if located.chunk == -1:
            self._check(located, size == 0, 0)
            return b""
        if type(located.pieces) is not int or not 1 <= located.pieces <= len(self.index.chunks):
            raise DamagedTrace(f"{self.name} names a tensor of {located.pieces} pieces.")
        if located.pieces == 1:
            stored: Bytes = self.tensor(located.chunk, located.tensor)
        else:
            stored = b"".join(
                self.tensor(located.chunk + i, located.tensor * (i == 0)) for i in range(located.pieces)
            )
        if not located.strided:
            self._check(located, located.skip == 0 and size == len(stored), len(stored))
            return bytes(stored)
        if size == 0:
            return b""
        width = itemsize(located.dtype)
        last = sum((n - 1) * s for n, s in zip(located.shape, located.strides, strict=True))
        within = located.skip + (last + 1) * width <= len(stored) and size <= len(stored)
        self._check(located, within, len(stored))
        return strided_bytes(stored, located.skip, located.shape, located.strides, width)

    def _check(self, located: Located, fits: bool, stored: int) -> None:
        if not fits:
            raise DamagedTrace(
                f"{self.name} holds a {located.dtype} tensor of shape {located.shape} and strides "
                f"{located.strides} that does not fit the {stored} bytes that are stored of it."
            )


def _number(data: dict[str, Any], key: str, name: str) -> int:
    value = data.get(key)
    if type(value) is not int:
        raise DamagedTrace(f"{name} holds an end mark whose {key!r} is not a number.")
    return value


def _copied_forms(summary: dict[str, Any], name: str) -> dict[int, bytes]:
    """The forms that an END frame repeats, by their numbers."""
    found = {}
    try:
        for number, data, *_ in summary.get("forms", ()):
            if not isinstance(data, bytes):
                raise TypeError("something else where a form belongs")
            found[as_place(number)] = data
    except (TypeError, ValueError) as error:
        raise DamagedTrace(f"{name} has an end mark that cannot be read: {error!r}.") from error
    return found
