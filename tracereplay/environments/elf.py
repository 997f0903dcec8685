"""Read and weaken the symbol versions that a shared object asks for (ELF, 64 bits, little-endian).

A shared object lists, for each library it was linked to, the symbol versions that it needs. The loader
refuses the object if one is absent, unless the entry carries the flag ``VER_FLG_WEAK``.

Source: "ELF symbol versioning", https://refspecs.linuxfoundation.org/LSB_5.0.0/LSB-Core-generic/
LSB-Core-generic/symversion.html
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tracereplay.errors import EnvironmentFailed

__all__ = ["VersionNeed", "version_needs", "weaken"]

VER_FLG_WEAK = 0x2
PT_LOAD, PT_DYNAMIC = 1, 2
DT_STRTAB, DT_VERNEED, DT_VERNEEDNUM = 5, 0x6FFFFFFE, 0x6FFFFFFF


@dataclass(frozen=True)
class VersionNeed:
    """One symbol version that a shared object needs: of which library, whether weakly, and where it says so."""

    soname: str
    version: str
    flags: int
    flags_offset: int

    @property
    def weak(self) -> bool:
        """Whether the loader accepts a library without it."""
        return bool(self.flags & VER_FLG_WEAK)


def version_needs(path: Path) -> list[VersionNeed]:
    """The symbol versions that a shared object needs, in file order.

    Raises:
        EnvironmentFailed: the file is not a 64-bit little-endian ELF file, or is cut short.
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise EnvironmentFailed(f"{path} is not a 64-bit little-endian shared object.")
    try:
        return list(_needs(data))
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise EnvironmentFailed(f"{path} is not a complete shared object: {error}.") from error


def weaken(path: Path, version: str) -> bool:
    """Mark every need of ``version`` as weak; say whether anything had to be changed.

    The file is replaced, never written in place. Why? uv hard-links it to its cache, and through the cache
    to every other environment.
    """
    strong = [need for need in version_needs(path) if need.version == version and not need.weak]
    if not strong:
        return False
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    copy = Path(name)
    try:
        shutil.copy2(path, copy)
        with copy.open("r+b") as file:
            for need in strong:
                file.seek(need.flags_offset)
                file.write(struct.pack("<H", need.flags | VER_FLG_WEAK))
        os.replace(copy, path)
    finally:
        copy.unlink(missing_ok=True)
    return True


def _needs(data: bytes) -> Iterator[VersionNeed]:
    segments = list(_segments(data))
    dynamic = dict(_dynamic(data, segments))
    if DT_VERNEED not in dynamic:
        return
    strings = _offset(dynamic[DT_STRTAB], segments)
    at = _offset(dynamic[DT_VERNEED], segments)
    for _ in range(dynamic[DT_VERNEEDNUM]):
        _version, count, file, aux, following = struct.unpack_from("<HHIII", data, at)
        entry = at + aux
        for _ in range(count):
            _hash, flags, _other, name, after = struct.unpack_from("<IHHII", data, entry)
            yield VersionNeed(_text(data, strings + file), _text(data, strings + name), flags, entry + 4)
            if not after:
                break
            entry += after
        if not following:
            break
        at += following


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The program headers, as (type, file offset, address, size in the file)."""
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for number in range(count):
        header = struct.unpack_from("<IIQQQQ", data, start + number * size)
        kind, _flags, offset, address, _physical, length = header
        yield kind, offset, address, length


def _dynamic(data: bytes, segments: list[tuple[int, int, int, int]]) -> Iterator[tuple[int, int]]:
    for kind, offset, _address, length in segments:
        if kind == PT_DYNAMIC:
            yield from struct.iter_unpack("<QQ", data[offset : offset + length])


def _offset(address: int, segments: list[tuple[int, int, int, int]]) -> int:
    for kind, offset, start, length in segments:
        if kind == PT_LOAD and start <= address < start + length:
            return offset + address - start
    raise ValueError(f"address {address:#x} is in no segment")


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode("ascii", "replace")
