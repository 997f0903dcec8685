"""Who asked for what: files in which a server's front ends say which requests they took, and how each ended.

    requests-N.req := MAGIC META REQUEST*

A front end appends a record when it takes a request and another when that has ended; a reader joins them by the
engine's own id of the request, by which steps name it too. What was written stands, however its process ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from tracereplay.errors import DamagedTrace
from tracereplay.storage.files import File
from tracereplay.trace.codec import RAW
from tracereplay.trace.frames import MAGIC, Tag, fetch, scan, unlocked, write_header
from tracereplay.trace.limits import Limits
from tracereplay.trace.plain import decode_record, encode_record, pack, unpack
from tracereplay.trace.sealed import SEALED, Seal

__all__ = [
    "NAME", "Identity", "Moment", "RequestFile", "bounded", "checked", "described", "read_identities", "record_of",
    "rewritten",
]  # fmt: skip

NAME = re.compile(r"requests-(?P<number>0|[1-9]\d{0,3})\.req", re.ASCII)
MAX_FILES = 10_000
LONGEST = 256  # characters of a text that a client chose, as far as it is written
READ = 1024  # characters that a reader takes
MOST_FIELDS = 16
MAX_RECORD = 64 << 10  # bytes, decoded
MAX_REQUESTS = 1 << 22  # of one file
LOOK = 50_000  # records in which some of the first requests are looked for
_GUESS = 1 << 9  # bytes of most records
_BLOCK = 1 << 20


class Moment(NamedTuple):
    """A time, on two clocks.

    Args:
        utc: nanoseconds since 1970; may be set back.
        monotonic: nanoseconds since the machine started, or some such; to be compared within one machine.
    """

    utc: int
    monotonic: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What a front end says of a request. All of it comes from strangers, and is text for people.

    Args:
        id: the engine's own, of one sample of it.
        name: the id that the front end was given or made: a client's ``cmpl-...`` with the number of its prompt.
        arrived, ended: when; None: not known, or not ended while this was recorded.
        reason: why it ended: ``stop``, ``length``, ``abort`` and others of the engine's; empty: it did not.
        stop: the text or token at which it stopped, if it was one of the request's own.
        sample: which of its samples.
        adapter: by its name; empty: the model itself.
        priority: of scheduling.
        prompt, tokens: how many of them it has, as the front end counted; None: not known.
        fields: of the request's body, those that the recording was asked to keep.
    """

    id: str
    name: str = ""
    arrived: Moment | None = None
    ended: Moment | None = None
    reason: str = ""
    stop: str | int | None = None
    sample: int = 0
    adapter: str = ""
    priority: int = 0
    prompt: int | None = None
    tokens: int | None = None
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def client_id(self) -> str:
        """The id as the client has it: completions add the number of the prompt in its body."""
        found = _OF_A_PROMPT.fullmatch(self.name)
        return found["id"] if found is not None else self.name


_OF_A_PROMPT = re.compile(r"(?P<id>cmpl-.+)-\d{1,6}", re.DOTALL)


def bounded(text: str) -> str:
    """``text``, or of a long one its beginning and a digest: a client may send any id."""
    if len(text) <= LONGEST:
        return text
    digest = xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))
    return f"{text[: LONGEST - 20]}...{digest}"


class RequestFile:
    """The file of one process, which appends to it.

    Args:
        directory: the trace's.
        meta: what the process says of itself, plain data.
        recipients: the only ones who can read it; see `SegmentWriter`.

    Raises:
        OSError: it cannot be made.
        UsageError: it cannot be sealed.
    """

    def __init__(self, directory: Path, meta: Mapping[str, Any], recipients: Sequence[str] = ()) -> None:
        self._lock = threading.Lock()
        self._seal = Seal.new(recipients) if recipients else None
        for number in count():
            self.path = directory / f"requests-{number}.req"
            with contextlib.suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._fd = os.open(self.path, flags, 0o600)
                break
            if number >= MAX_FILES:
                raise FileExistsError(f"{directory} has {MAX_FILES} of them")
        self._size = 0
        try:
            self._write(MAGIC)
            if self._seal is not None:
                self._write(_frame(Tag.KEY, RAW, self._seal.wrapped, len(self._seal.wrapped)))
            self._frame(Tag.META, meta)
        except OSError:  # the next attempt would take another number, and so on while the disk is full
            self.close()
            with contextlib.suppress(OSError):
                self.path.unlink()
            raise

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a record, whole or not at all.

        Raises:
            OSError: it could not be written.
        """
        self._frame(Tag.REQUEST, record)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _frame(self, kind: Tag, record: Mapping[str, Any]) -> None:
        data = pack(dict(record))
        payload, codec = encode_record(data)
        with self._lock:
            if self._seal is not None:
                pieces = self._seal.close(kind, codec, self._size, len(data), payload)
                payload, codec = b"".join(pieces), SEALED
            self._write(_frame(kind, codec, payload, len(data)))

    def _write(self, data: bytes) -> None:
        """Appends all of it in one call to the system, so that a process that is killed has written it or not."""
        written = 0
        try:
            written = os.write(self._fd, data)
        finally:
            if written < len(data):  # a torn record would hide all that follows
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._size)
        if written < len(data):
            raise OSError("the disk took only a part of a record")
        self._size += written


def _frame(kind: Tag, codec: int, payload: bytes, size: int) -> bytes:
    return write_header(kind, codec, len(payload), size, xxhash.xxh3_64_intdigest(payload)) + payload


def rewritten(file: File, out: Path, recipients: Sequence[str], *, withhold: bool) -> None:
    """Writes a file anew.

    Args:
        file: what there is.
        out: file to create, named like `NAME`.
        recipients: see `RequestFile`.
        withhold: whether texts are left out at which requests stopped, since these are theirs.

    Raises:
        OSError: it cannot be written.
        NotATrace, DamagedTrace: it is not what was written.
    """
    source, _ = unlocked(file)
    to: RequestFile | None = None
    for frame in scan(source):
        if frame.kind not in (Tag.META, Tag.REQUEST):
            continue
        found, payload = fetch(source, frame.offset, frame.length, Tag(frame.kind))
        record = unpack(decode_record(payload, found.codec, frame.size, file.name, MAX_RECORD), file.name)
        if to is None:
            to = RequestFile(out.parent, record if frame.kind == Tag.META else {}, recipients)
            to.path.rename(out)
        elif isinstance(record, dict):
            to.add({name: value for name, value in record.items() if name != "stop" or not withhold})
    if to is not None:
        to.close()


def record_of(identity: Identity) -> dict[str, Any]:
    """What is written of an identity, without what is not known or usual."""
    said = {name: value for name, usual in _USUAL if (value := getattr(identity, name)) != usual}
    return {"id": identity.id, **said}


_USUAL = [(f.name, getattr(Identity(""), f.name)) for f in dataclasses.fields(Identity) if f.name != "id"]


def read_identities(source: File, wanted: Collection[str] | None = None) -> dict[str, Identity]:
    """What a file says, by the engine's id; later records of a request add to earlier ones.

    Args:
        source: the file.
        wanted: ids of requests that are wanted alone, and are among the first; None: all.

    Raises:
        NotATrace, DamagedTrace: it is not what was written.
    """
    limits, file = Limits(source), unlocked(_Ahead(source))[0]
    said: dict[str, dict[str, Any]] = {}
    left = None if wanted is None else set(wanted)
    for number, frame in enumerate(scan(file)):
        if left is not None and (not left or number > LOOK):
            break
        if frame.kind != Tag.REQUEST:
            continue
        if frame.size > MAX_RECORD:
            raise DamagedTrace(f"{file.name} declares a request of {frame.size} bytes; the limit is {MAX_RECORD}.")
        limits.record(frame.offset, frame.size)
        found_at, payload = fetch(file, frame.offset, min(frame.length, _GUESS), Tag.REQUEST)
        record = unpack(decode_record(payload, found_at.codec, frame.size, file.name), file.name)
        try:
            name = _text(record["id"])
            if wanted is not None and name not in wanted:
                continue
            if left is not None and "ended" in record:
                left.discard(name)
            found = said.setdefault(name, {})
        except (TypeError, KeyError, ValueError) as error:
            raise DamagedTrace(f"{file.name} holds a request that cannot be read: {error!r}.") from error
        found.update(record)
        if len(said) > MAX_REQUESTS:
            raise DamagedTrace(f"{file.name} names more than {MAX_REQUESTS} requests.")
    try:
        return {name: _identity(record) for name, record in said.items()}
    except (TypeError, ValueError, KeyError) as error:
        raise DamagedTrace(f"{file.name} holds a request that cannot be read: {error!r}.") from error


class _Ahead:
    """A file that is read from its beginning to its end, in few reads."""

    def __init__(self, file: File) -> None:
        self._file, self.name, self.size = file, file.name, file.size
        self._start, self._data = 0, b""

    def read(self, offset: int, length: int) -> bytes:
        if not self._start <= offset <= offset + length <= self._start + len(self._data):
            self._start, self._data = offset, self._file.read(offset, max(length, _BLOCK))
        at = offset - self._start
        return self._data[at : at + length]

    def close(self) -> None:
        """The file is closed by who opened it."""


class Checked(NamedTuple):
    """What was found of a file.

    Args:
        frames: whole ones.
        end: of the last one.
        lost: records that its process could not write.
    """

    frames: int
    end: int
    lost: int


def checked(file: File, stated: Mapping[str, Any] | None) -> Checked:
    """Reads all of a file.

    Args:
        file: a file named like `NAME`.
        stated: what the manifest says of it (see `described`), if it does.

    Raises:
        NotATrace, DamagedTrace: it is not what was written.
    """
    read_identities(file)
    frames, end, lost = 0, len(MAGIC), 0
    source, _ = unlocked(file)
    for frame in scan(source):
        if frame.kind in (Tag.META, Tag.REQUEST):
            found, payload = fetch(source, frame.offset, frame.length, Tag(frame.kind))
            said = unpack(decode_record(payload, found.codec, frame.size, file.name, MAX_RECORD), file.name)
            lost = max(lost, _lost(said))
        frames, end = frames + 1, frame.end
    size = None if stated is None else stated.get("size")
    if stated is not None and (type(size) is not int or size > file.size or stated != described(file, size)):
        raise DamagedTrace(f"{file.name} is damaged: it is not the file that the manifest describes.")
    return Checked(frames, end, lost)


def _lost(said: Any) -> int:
    found = said.get("lost") if isinstance(said, dict) else None
    return found if type(found) is int else 0


def described(file: File, size: int | None = None) -> dict[str, Any]:
    """What a manifest says of the first ``size`` bytes of a file (all of it), which has no end mark of its own.

    Ends of requests may still be appended when the trace is finished.
    """
    size = file.size if size is None else size
    state = xxhash.xxh3_128()
    for start in range(0, size, _BLOCK):
        state.update(file.read(start, min(_BLOCK, size - start)))
    return {"size": size, "xxh3": state.hexdigest()}


def _identity(said: Mapping[str, Any]) -> Identity:
    fields = said.get("fields", {})
    if not isinstance(fields, dict) or len(fields) > MOST_FIELDS:
        raise ValueError("something else where a request's fields belong")
    stop = said.get("stop")
    return Identity(
        id=_text(said["id"]),
        name=_text(said.get("name", "")),
        arrived=_moment(said.get("arrived")),
        ended=_moment(said.get("ended")),
        reason=_text(said.get("reason", "")),
        stop=stop if stop is None or type(stop) is int else _text(stop),
        sample=_count(said.get("sample", 0)),
        adapter=_text(said.get("adapter", "")),
        priority=_priority(said.get("priority", 0)),
        prompt=None if said.get("prompt") is None else _count(said["prompt"]),
        tokens=None if said.get("tokens") is None else _count(said["tokens"]),
        fields={_text(key): _text(value) for key, value in fields.items()},
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > READ:
        raise ValueError("something else where a text belongs, or a long one")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError("something else where a count belongs")
    return value


def _priority(value: Any) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise ValueError("something else where a priority belongs")
    return value


def _moment(value: Any) -> Moment | None:
    if value is None:
        return None
    utc, monotonic = value
    if not all(type(part) is int and 0 <= part < 1 << 63 for part in (utc, monotonic)):
        raise ValueError("something else where a time belongs")
    return Moment(utc, monotonic)
