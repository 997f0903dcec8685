"""ZIP files that strangers made, read strictly: a file that a plain writer would not have written is refused.

    file     :=  ( local header, name, data )*  directory  end
    members  touch each other from the first byte to the directory, so that no bytes are read twice or by nobody
    names    of a few plain parts, each once; no folders, links, comments or encryption
    data     stored or deflated, to a size that is stated and bears a proportion to what is stored

The standard library reads the directory and inflates; what it believes is checked here first.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tracereplay.errors import BadBundle, NotATrace
from tracereplay.storage.files import File, Window

__all__ = ["MAX_INFLATED", "NAME", "Member", "Zipped", "is_zip"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,2}", re.ASCII)
MAX_MEMBERS = 1000
MAX_DIRECTORY = 1 << 20  # bytes
MAX_INFLATED = 256 << 20  # bytes of a deflated member; what is stored as it is takes what it takes
MAX_RATIO, SLACK = 300, 64 << 10  # of a deflated member, to what is stored of it; text reaches about a hundred
_BLOCK = 1 << 20
_LOCAL = struct.Struct("<4s5H3L2H")
_END = struct.Struct("<4s4H2LH")
_ZIP64 = 20  # bytes of what would stand before the end of a file of more than 4 GiB
_FLAGS = 0x0806  # names in UTF-8, how hard it was compressed
_FOLDER = 0x10  # among DOS's attributes
_WRONG = (
    zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, ValueError, OverflowError,
    EOFError, IndexError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive.

    Args:
        name: with `/` between its parts.
        size: of the file, bytes.
        offset: where what is stored of it begins in the archive.
        stored: bytes that it takes there.
        plain: whether it is stored as it is, and not deflated.
    """

    name: str
    size: int
    offset: int
    stored: int
    plain: bool


class Zipped:
    """An archive whose directory was checked; its members are checked as they are read.

    Args:
        file: the archive.

    Raises:
        NotATrace: it is no ZIP file.
        BadBundle: it is one that is not safe to open.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        end = _directory(file)
        try:
            self._zip = zipfile.ZipFile(_Stream(file))
            infos = self._zip.infolist()
        except _WRONG as error:
            raise _bad(file, f"its directory cannot be read ({error})") from error
        self.members: Mapping[str, Member] = _members(file, infos, end)

    def window(self, name: str) -> File:
        """A member that is stored as it is, as a file.

        Raises:
            BadBundle: there is none of that name, or it is deflated.
        """
        member = self._member(name)
        if not member.plain:
            raise _bad(self._file, f"its {name} is compressed once more, and must be stored as it is")
        return Window(self._file, member.offset, member.size, name)

    def blocks(self, name: str) -> Iterator[bytes]:
        """A member's contents, inflated; of at most the size that it states.

        Raises:
            BadBundle: there is none of that name, or its data are damaged.
        """
        member = self._member(name)
        left = member.size
        try:
            with self._zip.open(name) as file:
                while block := file.read(_BLOCK):
                    left -= len(block)
                    yield block
        except _WRONG as error:
            raise _bad(self._file, f"its {name} is damaged ({error})") from error
        if left:
            raise _bad(self._file, f"its {name} is damaged: {left} bytes of it are missing")

    def read(self, name: str, most: int = MAX_INFLATED) -> bytes:
        """A member's contents, if they are not more than ``most`` bytes.

        Raises:
            BadBundle: see `blocks`; or they are.
        """
        if self._member(name).size > most:
            raise _bad(self._file, f"its {name} is larger than {most} bytes")
        return b"".join(self.blocks(name))

    def _member(self, name: str) -> Member:
        found = self.members.get(name)
        if found is None:
            raise _bad(self._file, f"it lacks {name}")
        return found


def is_zip(file: File) -> bool:
    """Whether a file begins as ZIP files do that have members."""
    return file.read(0, 4) == b"PK\x03\x04"


def _directory(file: File) -> int:
    """Where the directory begins, if the end of the file says plainly what there is."""
    if not is_zip(file):
        raise NotATrace(f"{file.name} is not a ZIP file.")
    tail = file.read(max(0, file.size - _END.size - _ZIP64), _END.size + _ZIP64)
    if len(tail) < _END.size + _ZIP64:
        raise _bad(file, "it is cut off")
    mark, disk, first, here, members, size, offset, comment = _END.unpack(tail[_ZIP64:])
    if mark != b"PK\x05\x06" or comment:
        raise _bad(file, "it does not end with its directory: it is cut off, or something was added")
    if tail.startswith(b"PK\x06\x07") or disk or first or here != members:
        raise _bad(file, "it is one of several parts, or of more than 4 GiB")
    if members > MAX_MEMBERS or size > MAX_DIRECTORY:
        raise _bad(file, f"it lists {members} files in {size} bytes, and {MAX_MEMBERS} are the most")
    if offset + size + _END.size != file.size:
        raise _bad(file, "there is something between its directory and its end")
    return int(offset)


def _members(file: File, infos: list[zipfile.ZipInfo], end: int) -> dict[str, Member]:
    found: dict[str, Member] = {}
    seen: set[str] = set()
    at = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.filename
        if info.orig_filename != name or not NAME.fullmatch(name):
            said = _shown(info.orig_filename)
            raise _bad(file, f"it names a file {said}, and names are like report.html or a/b.txt")
        if name.lower() in seen:
            raise _bad(file, f"it has two files named {name}")
        seen.add(name.lower())
        if why := _unfit(info):
            raise _bad(file, f"its {name} {why}")
        found[name] = member = _placed(file, info, at, end)
        at = member.offset + member.stored
    if at != end:
        raise _bad(file, "there is something between its files")
    return found


def _unfit(info: zipfile.ZipInfo) -> str | None:
    """Why a member is not read, by what the directory says of it."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or info.external_attr & _FOLDER:
        return "is a link, a folder or a device, and not a plain file"
    if info.flag_bits & ~_FLAGS:
        return "is encrypted, or written in a way that is not read here"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in a way that is not read here"
    if info.compress_type == zipfile.ZIP_STORED:
        return None if info.file_size == info.compress_size else "has two sizes"
    if info.file_size > MAX_INFLATED or info.file_size > MAX_RATIO * info.compress_size + SLACK:
        return f"would be {info.file_size} bytes from {info.compress_size}, more than is read"
    return None


def _placed(file: File, info: zipfile.ZipInfo, at: int, end: int) -> Member:
    """A member with its place, if its own header says what the directory says and stands at ``at``."""
    head = file.read(info.header_offset, _LOCAL.size)
    if info.header_offset != at or len(head) < _LOCAL.size:
        raise _bad(file, f"its {info.filename} does not begin where the file before it ends")
    mark, _, flags, method, _, _, crc, stored, size, name, extra = _LOCAL.unpack(head)
    said = mark, flags, method, crc, stored, size
    known = b"PK\x03\x04", info.flag_bits, info.compress_type, info.CRC, info.compress_size, info.file_size
    start = at + _LOCAL.size + name + extra
    if said != known or file.read(at + _LOCAL.size, name) != info.filename.encode():
        raise _bad(file, f"its {info.filename} is described in two ways")
    if start + info.compress_size > end:
        raise _bad(file, f"its {info.filename} reaches beyond its end")
    return Member(info.filename, info.file_size, start, info.compress_size, method == zipfile.ZIP_STORED)


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else f"{name[:80]}...")


def _bad(file: File, why: str) -> BadBundle:
    return BadBundle(f"{file.name} is not a bundle that is safe to open: {why}.")


class _Stream(io.RawIOBase):
    """A file that is read by ranges, as the standard library reads files."""

    def __init__(self, file: File) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise ValueError("a place before the file's beginning")
        self._at = start + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._file.size - self._at)
        data = self._file.read(self._at, left if size < 0 else min(size, left))
        self._at += len(data)
        return data
