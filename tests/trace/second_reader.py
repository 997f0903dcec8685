"""A second reader of traces, written from FORMAT.md alone: it shares no code with the package."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import xxhash
import zstandard

MAGIC = b"\x93TRACE\r\n"
META, SITES, DATA, STEP, INDEX, END, MANIFEST, SEGMENT, FORM = range(1, 10)
REQUEST, REQUESTS = 11, 12
RAW, ZSTD, PLANES, STRONG, DELTA, ROWS = range(6)
LIMIT = 64 << 20
SEGMENT_NAME = re.compile(r"([a-z]{1,32})-rank(0|[1-9][0-9]{0,3})\.seg")


class DamagedError(ValueError):
    """What was read is not what was written, or not of this format."""


def require(condition: object, what: str) -> None:
    """Refuse to go on, unless the condition holds."""
    if not condition:
        raise DamagedError(what)


def unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """The map of the pairs, each key once."""
    require(len(dict(pairs)) == len(pairs), "a key occurs twice")
    return dict(pairs)


def unzstd(stored: bytes, size: int) -> bytes:
    """Decode one zstandard frame that declares the size."""
    try:
        require(zstandard.get_frame_parameters(stored).content_size == size, "another size is declared")
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedError(str(error)) from error


class Frame(NamedTuple):
    """A frame: its header, and where it lies."""

    data: memoryview
    offset: int
    kind: int
    codec: int
    zero: int
    length: int
    size: int
    checksum: int

    @classmethod
    def at(cls, data: memoryview, offset: int, *kinds: int) -> Frame:
        """The frame, of one of the kinds if any are given, whose header begins at the offset."""
        head = data[offset : offset + 32]
        require(offset >= 8 and len(head) == 32, f"no header at {offset}")
        *fields, own = struct.unpack("<BBHQQQI", head)
        frame = cls(data, offset, *fields)
        good = xxhash.xxh32_intdigest(head[:28]) == own and frame.zero == 0
        require(good, f"the header at {offset} is damaged")
        require(not kinds or frame.kind in kinds, f"the frame at {offset} is of another kind")
        return frame

    @property
    def end(self) -> int:
        """Where the frame ends."""
        return self.offset + 32 + self.length

    def stored(self) -> memoryview:
        """The payload as stored, checked."""
        require(self.kind in (SEGMENT, REQUESTS) or self.size <= LIMIT, f"the frame at {self.offset} is too large")
        payload = self.data[self.offset + 32 : self.end]
        good = len(payload) == self.length and xxhash.xxh3_64_intdigest(payload) == self.checksum
        require(good, f"the payload at {self.offset} is damaged")
        return payload

    def decoded(self, base: Trace | None = None) -> bytes:
        """The payload, decoded."""
        if self.codec == RAW:
            result = bytes(self.stored())
        elif self.codec == ZSTD and self.kind != DATA:
            result = unzstd(bytes(self.stored()), self.size)
        elif self.codec in (PLANES, STRONG, DELTA, ROWS) and self.kind == DATA:
            result = from_planes(bytes(self.stored()), self.size, self.codec, base)
        else:
            raise DamagedError(f"codec {self.codec} for kind {self.kind} is not known")
        require(len(result) == self.size, f"the payload at {self.offset} has another size")
        return result

    def record(self) -> Any:
        """The payload as msgpack."""
        return msgpack.unpackb(self.decoded(), object_pairs_hook=unique)


def frames(data: memoryview) -> Iterator[Frame]:
    """All whole frames, from header to header, up to END."""
    offset = len(MAGIC)
    while offset + 32 <= len(data):
        frame = Frame.at(data, offset)
        if frame.end <= len(data):
            yield frame
        offset = len(data) if frame.kind == END else frame.end


def requests(data: bytes) -> dict[str, dict[str, Any]]:
    """What a file `requests-N.req` says, by the engine's id."""
    require(data[:8] == MAGIC[: len(data)], "this does not begin as a trace's file")
    found: dict[str, dict[str, Any]] = {}
    for frame in frames(memoryview(data)):
        if frame.kind == REQUEST:
            record = frame.record()
            found.setdefault(record["id"], {}).update(record)
    return found


def requests_in_pack(data: bytes) -> dict[str, bytes]:
    """The files of requests in a pack, by name."""
    view, found = memoryview(data), {}
    end = closing(view)
    require(end is not None, "the pack has no end")
    for name, offset in end.record().get("requests", ()):  # type: ignore[union-attr]
        stored = bytes(Frame.at(view, offset, REQUESTS).stored())
        size = int.from_bytes(stored[:2], "little")
        require(stored[2 : 2 + size].decode() == name, "a file has another name")
        found[name] = stored[2 + size :]
    return found


def closing(data: memoryview) -> Frame | None:
    """The END frame that the TAIL points to; None without a TAIL."""
    require(data[:8] == MAGIC[: len(data)], "this does not begin as a segment or a pack")
    if len(data) < 24 or data[-8:] != MAGIC:
        return None
    end = Frame.at(data, int.from_bytes(data[-16:-8], "little"), END)
    require(end.end + 16 == len(data), "the tail does not point to the end")
    return end


def layout(dtype: str) -> tuple[int, int, bool]:
    """Bytes of an element, bytes of a word, and whether words are floats; by torch's or safetensors' name."""
    family, bits = re.fullmatch(r"([a-z]+)(\d*).*", dtype.lower()).groups()  # type: ignore[union-attr]
    size, pair = max(int(bits or 8) // 8, 1), family in ("c", "complex")
    return size, size // 2 if pair else size, pair or family in ("f", "bf", "float", "bfloat")


class Stored(NamedTuple):
    """Where in a chunk a tensor is, and its words."""

    begin: int
    end: int
    word: int
    real: bool


def tensors(chunk: bytes, size: int) -> list[Stored]:
    """The tensors that the beginning of a chunk of that size names, by number."""
    at = int.from_bytes(chunk[:8], "little") + 8
    require(8 <= at <= len(chunk), "the chunk has no header")
    entries, width = json.loads(chunk[8:at], object_pairs_hook=unique), 8
    places = [[at + offset for offset in entry["data_offsets"]] for entry in entries.values()]
    named = (layout(entry.get("torch", entry["dtype"])) for entry in entries.values())
    result = [Stored(*place, *words) for place, (_, *words) in zip(places, named, strict=True)]
    require(list(entries) == [str(number) for number in range(len(entries))], "tensors are not numbered")
    for tensor in sorted(result):
        require(tensor.begin == at <= tensor.end and tensor.word <= width, "tensors are out of order")
        at, width = tensor.end, tensor.word
    require(at == size, "the tensors do not fill the chunk")
    return result


def split(stored: bytes) -> Iterator[bytes]:
    """The streams of a chunk stored as planes."""
    at = 4 + 8 * int.from_bytes(stored[:4], "little")
    require(4 <= at <= len(stored), "there are fewer streams than announced")
    for length, size in struct.iter_unpack("<II", stored[4:at]):
        require(size <= LIMIT and at + length <= len(stored), "a stream is too large")
        stream, at = stored[at : at + length], at + length
        yield stream if length == size else unzstd(stream, size)
    require(at == len(stored), "bytes follow the last stream")


def from_planes(stored: bytes, size: int, codec: int, base: Trace | None) -> bytes:
    """Decode a chunk stored as byte planes, or as byte planes of differences."""
    streams = split(stored)
    beginning = next(streams, b"")
    named = tensors(beginning, size)
    links = json.loads(next(streams)) if codec in (DELTA, ROWS) else [None] * len(named)
    chunk = np.frombuffer(beginning.ljust(size, b"\0"), np.uint8).copy()
    for width, group in groupby(sorted(named), key=lambda tensor: tensor.word):
        region = list(group)
        words = chunk[region[0].begin : region[-1].end].reshape(-1, width)
        for byte in reversed(range(width)):
            plane = np.frombuffer(next(streams, b""), np.uint8)
            require(len(plane) == len(words), "a plane has another length")
            words[:, byte] = plane
    require(next(streams, None) is None and len(links) == len(named), "streams or links are too many or few")
    for tensor, link in zip(named, links, strict=True):
        if link is not None:
            require(base, "the base trace is needed")
            origin = origin_of(link, codec, base) if base else b""
            chunk[tensor.begin : tensor.end] = undo(chunk[tensor.begin : tensor.end], origin, tensor)
    return chunk.tobytes()


def origin_of(link: list[Any], codec: int, base: Trace) -> bytes:
    """The bytes of the base that a tensor is a difference from: a tensor, or spans of several."""
    if codec == DELTA:
        return base.segment(link[0]).tensor(link[1], link[2])
    require(len(link) <= 16384, "there are too many spans")
    found = b""
    for *place, count in link:
        require(type(count) is int and count >= 0, "a span has no size")
        if place:
            name, chunk, number, first = place
            whole = base.segment(name).tensor(chunk, number)
            require(0 <= first <= first + count <= len(whole), "a span is outside its tensor")
            found += whole[first : first + count]
        else:
            found += bytes(count)
    return found


def undo(difference: np.ndarray, origin: bytes, kind: Stored) -> np.ndarray:
    """The bytes whose difference from the origin's this is."""
    require(len(origin) == len(difference), "the base tensor has another size")
    word = np.dtype(f"<u{kind.word}").type
    top = word(1 << (8 * kind.word - 1))
    folded, words = np.frombuffer(difference.tobytes(), word), np.frombuffer(origin, word)
    if kind.real:
        words = np.where(words & top, ~words, words | top)
    words = words + ((folded >> word(1)) ^ (word(0) - (folded & word(1))))
    if kind.real:
        words = np.where(words & top, words ^ top, ~words)
    return np.frombuffer(words.tobytes(), np.uint8)


class Value(NamedTuple):
    """A tensor as an operator saw it."""

    dtype: str
    shape: list[int]
    strides: list[int]
    memory: int
    start: int
    version: int
    chunk: int
    tensor: int
    pieces: int
    skip: int
    strided: bool


class Call(NamedTuple):
    """One call of a site's operator."""

    site: str
    number: int
    inputs: list[Value]
    outputs: list[Value]
    rows_in: np.ndarray
    rows_out: np.ndarray
    written: list[tuple[int, Value]]


class Segment:
    """What one process recorded in one pass."""

    def __init__(self, name: str, data: memoryview, base: Trace | None = None) -> None:
        """Find the frames: by the index of a closed segment, by going through any other."""
        match, end = SEGMENT_NAME.fullmatch(name), closing(data)
        require(match, f"{name} names no segment")
        self.key = (match[1], int(match[2])) if match else ("", 0)
        self.name, self.data, self.base = name, data, base
        self.end: dict[str, Any] | None = end.record() if end else None
        self.known: tuple[int, bytes, list[Stored]] = (-1, b"", [])
        found = self.indexed(self.end) if self.end else self.scanned()
        self.chunks, self.records, self.forms = found[DATA], found[STEP], found[FORM]
        sites = [site for offset in found[SITES] for site in Frame.at(data, offset, SITES).record()]
        self.sites: dict[int, dict[str, Any]] = {site["slot"]: site for site in sites}

    def scanned(self) -> dict[int, list[int]]:
        """Where frames are, from header to header."""
        return {
            kind: [one.offset for one in frames(self.data) if one.kind == kind]
            for kind in (SITES, DATA, STEP, FORM)
        }

    def indexed(self, end: dict[str, Any]) -> dict[int, list[int]]:
        """Where frames are, by the INDEX frames."""
        found: dict[int, list[int]] = {SITES: [], DATA: [], STEP: [], FORM: []}
        if "indexes" in end:
            return self.listed(end, found)
        at = end["index"]
        while at:
            index = Frame.at(self.data, at, INDEX).record()
            for kind, key, place in ((SITES, "sites", 0), (DATA, "chunks", 0), (STEP, "steps", 1)):
                found[kind][:0] = [item[place] for item in index[key]]
            require(index["previous"] < at, "the index goes in a circle")
            at = index["previous"]
        require(len(found[STEP]) == end["steps"], "the index has not all steps")
        return found

    def listed(self, end: dict[str, Any], found: dict[int, list[int]]) -> dict[int, list[int]]:
        """Where frames are, by the INDEX frames that END lists: each lists lengths of frames in a row."""
        for at, length, start, forms, chunks, steps, first, *_ in end["indexes"]:
            frame = Frame.at(self.data, at, INDEX)
            index = frame.record()
            kinds, lengths = np.frombuffer(index["kinds"], "u1"), np.frombuffer(index["lengths"], "<u4")
            sizes, numbers = np.frombuffer(index["sizes"], "<u4"), np.frombuffer(index["numbers"], "<i8").cumsum()
            counts = [np.count_nonzero(kinds == kind) for kind in (FORM, DATA, STEP)]
            require(frame.length == length and counts == [forms, chunks, steps], "END says otherwise of an index")
            require(len(numbers) == steps and (not steps or numbers[0] == first), "the numbers are others")
            for kind, stored, size in zip(kinds.tolist(), lengths.tolist(), sizes.tolist(), strict=True):
                listed = Frame.at(self.data, start, kind)
                require((listed.length, listed.size) == (stored, size), "the index has other lengths")
                found.setdefault(kind, []).append(start)
                start = listed.end
            require(start <= at, "an index lists what is behind it")
        places = [[offset, Frame.at(self.data, offset, SITES).length] for offset in found[SITES]]
        require([place[:2] for place in end["sites"]] == places, "END lists other sites")
        require(len(found[STEP]) == end["steps"], "the index has not all steps")
        for number, copy, *_ in end["forms"]:
            require(Frame.at(self.data, found[FORM][number], FORM).decoded() == copy, "END repeats another form")
        return found

    def whole(self, offset: int) -> dict[str, Any]:
        """The record of the STEP frame there, in one piece."""
        step = Frame.at(self.data, offset, STEP).record()
        if "values" in step:
            return step
        require(step["form"] < len(self.forms) and self.forms[step["form"]] < offset, "there is no such form yet")
        form = Frame.at(self.data, self.forms[step["form"]], FORM).record()
        require(form["maps"] == len(step["maps"]), "the form has another number of row maps")
        away = {place: rest for place, *rest in step.pop("elsewhere", [])}
        first, values = step.pop("chunk"), []
        for place, (*lies, chunk, tensor, pieces, skip, strided) in enumerate(form["values"]):
            own = [chunk + first if chunk >= 0 else chunk, tensor, pieces, skip, strided]
            values.append([*lies, *(away.pop(place) if chunk == -2 else own)])
        require(not away, "a step says where values are that it has itself")
        columns = step.pop("sampled")
        head = {"number": step.pop("number"), "maps": step.pop("maps"), "values": values, "calls": form["calls"]}
        del step["form"]
        return head | {"sampled": [list(row) for row in zip(*columns, strict=True)]} | step

    def tensor(self, chunk: int, number: int) -> bytes:
        """The bytes of a tensor in a chunk."""
        if chunk != self.known[0]:
            require(0 <= chunk < len(self.chunks), f"there is no chunk {chunk}")
            decoded = Frame.at(self.data, self.chunks[chunk], DATA).decoded(self.base)
            self.known = (chunk, decoded, tensors(decoded, len(decoded)))
        _, decoded, named = self.known
        require(0 <= number < len(named), f"there is no tensor {number} in chunk {chunk}")
        return decoded[named[number].begin : named[number].end]

    def content(self, value: Value) -> bytes:
        """The value's elements, one after the other in the order of their indices."""
        if value.chunk == -1:
            require(0 in value.shape, "a value with elements has no chunk")
            return b""
        later = (self.tensor(value.chunk + piece, 0) for piece in range(1, value.pieces))
        stored, size = b"".join((self.tensor(value.chunk, value.tensor), *later)), layout(value.dtype)[0]
        if not value.strided:
            require(len(stored) == size * math.prod(value.shape) and value.skip == 0, "a value has another size")
            return stored
        try:
            strides = [size * stride for stride in value.strides]
            return np.ndarray(value.shape, f"V{size}", stored, value.skip, strides).tobytes()
        except (TypeError, ValueError) as error:
            raise DamagedError("a value reaches beyond what is stored") from error

    def steps(self) -> Iterator[dict[str, Any]]:
        """All steps, in order: their records, with `rows`, and with references in `calls` resolved."""
        for offset in self.records:
            record = self.whole(offset)
            maps = [np.frombuffer(rows, "<i4").reshape(-1, 3) for rows in record["maps"]]
            values = [Value(*items[:11]) for items in record["values"]]
            calls = [self.call(items, maps, values) for items in record["calls"]]
            yield record | {"rows": maps[0], "calls": calls}

    def call(self, items: list[Any], maps: list[np.ndarray], values: list[Value]) -> Call:
        """A call, its references resolved."""
        slot, number, inputs, outputs, rows_in, rows_out, written, *_ = items
        before, after = [values[place] for place in inputs], [values[place] for place in outputs]
        changed = [(index, values[place]) for index, place, *_ in written]
        return Call(self.sites[slot]["name"], number, before, after, maps[rows_in], maps[rows_out], changed)

    def digest(self) -> str:
        """The content digest, computed from the frames and compared with END's."""
        digest = xxhash.xxh3_128()
        for frame in frames(self.data):
            if frame.kind in (META, SITES, DATA, STEP):
                decoded = frame.decoded(self.base)
                if frame.kind == STEP and "values" not in frame.record():
                    decoded = msgpack.packb(self.whole(frame.offset))
                digest.update(bytes([frame.kind]) + xxhash.xxh3_128_digest(decoded))
        same = self.end is None or self.end["content"] == digest.hexdigest()
        require(same, f"{self.name} has another content")
        return digest.hexdigest()


class Trace:
    """A manifest and segments; the base is the trace that differences are from."""

    def __init__(self, path: Path, base: Trace | None = None) -> None:
        """Open a directory or a pack."""
        require(not path.is_symlink(), f"{path} is a symbolic link")
        manifest, parts = read_directory(path) if path.is_dir() else read_pack(path)
        self.manifest = json.loads(manifest, object_pairs_hook=unique)
        check = self.manifest.pop("check", None)
        text = json.dumps(self.manifest, sort_keys=True, separators=(",", ":"))
        require(xxhash.xxh3_128_hexdigest(text.encode()) == check, "the manifest is damaged")
        require(self.manifest["format"] in (1, 2), "the format is not known")
        named = self.manifest["run"].get("base")
        require(not (base and named) or base.digest() == named["digest"], "the base is another trace")
        segments = (Segment(name, memoryview(data), base) for name, data in parts.items())
        self.segments = sorted(segments, key=lambda segment: segment.key)
        ends = [segment.end for segment in self.segments]
        closed = all(end is not None and not end.get("interrupted") for end in ends)
        self.complete = self.manifest["state"] == "complete" and closed

    def segment(self, name: str) -> Segment:
        """The segment of that file name."""
        found = [segment for segment in self.segments if segment.name == name]
        require(found, f"there is no segment {name}")
        return found[0]

    def digest(self) -> str:
        """The digest of the trace."""
        texts = (f"{segment.key[0]} {segment.key[1]} {segment.digest()}" for segment in self.segments)
        return xxhash.xxh3_128_hexdigest("".join(texts).encode())


def read_directory(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The manifest and the segments of a directory."""
    files = [file for file in path.iterdir() if SEGMENT_NAME.fullmatch(file.name)]
    links = [file.name for file in (*files, path / "manifest.json") if file.is_symlink()]
    require(not links, f"{links} are symbolic links")
    return (path / "manifest.json").read_bytes(), {file.name: file.read_bytes() for file in files}


def read_pack(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The manifest and the segments of a pack."""
    data, parts = memoryview(path.read_bytes()), {}
    end = closing(data)
    require(end, "the pack has no end")
    for name, offset, *_ in end.record()["segments"] if end else []:
        payload = Frame.at(data, offset, SEGMENT).stored()
        begin = 2 + int.from_bytes(payload[:2], "little")
        require(bytes(payload[2:begin]) == name.encode() and name not in parts, "a segment has another name")
        parts[name] = payload[begin:]
    return Frame.at(data, len(MAGIC), MANIFEST).decoded(), parts
