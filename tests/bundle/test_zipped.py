"""ZIP files of strangers: what a plain writer would not have written is refused, in one sentence."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tracereplay.errors import BadBundle, NotATrace, TraceError
from tracereplay.storage.files import LocalFile
from tracereplay.storage.zipped import Zipped

FILES = {"README.md": b"read me\n" * 50, "golden.pack": bytes(range(256)) * 4, "a/b.txt": b""}


def member(name: str, *, stored: bool = False, mode: int = 0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def zipped(*members: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for info, data in members:
            archive.writestr(info, data)
    return out.getvalue()


def plain() -> bytes:
    return zipped(*((member(name, stored=name.endswith(".pack")), data) for name, data in FILES.items()))


def opened(path: Path, data: bytes) -> Zipped:
    path.write_bytes(data)
    return Zipped(LocalFile(path))


def everything(path: Path, data: bytes) -> dict[str, bytes]:
    archive = opened(path, data)
    return {name: archive.read(name) for name in archive.members}


def test_a_plain_file_is_read(tmp_path: Path) -> None:
    archive = opened(tmp_path / "a.zip", plain())
    assert {name: archive.read(name) for name in archive.members} == FILES
    window = archive.window("golden.pack")
    assert window.read(250, 10) == FILES["golden.pack"][250:260]
    with pytest.raises(BadBundle, match="must be stored as it is"):
        archive.window("README.md")
    with pytest.raises(BadBundle, match=r"it lacks nothing\.txt"):
        archive.read("nothing.txt")
    with pytest.raises(BadBundle, match="larger than 10 bytes"):
        archive.read("README.md", 10)


def test_something_else_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(NotATrace, match="not a ZIP file"):
        opened(tmp_path / "a.zip", b"something else")


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "a/../x", "a/./x", "a\\b", ".hidden", "a//b", "a/b/c/d", "C:x", "é", "x" * 200, " "],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadBundle, match=r"names are like report\.html"):
        opened(tmp_path / "a.zip", zipped((member(name), b"x")))


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFDIR | 0o755, stat.S_IFIFO, stat.S_IFCHR])
def test_links_folders_and_devices_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(BadBundle, match="is a link, a folder or a device"):
        opened(tmp_path / "a.zip", zipped((member("x", mode=mode), b"/etc/passwd")))


def test_a_name_is_there_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = zipped((member("x.txt"), b"one"), (member("x.txt"), b"two"))
    with pytest.raises(BadBundle, match=r"two files named x\.txt"):
        opened(tmp_path / "a.zip", twice)
    with pytest.raises(BadBundle, match="two files named"):
        opened(tmp_path / "a.zip", zipped((member("x.txt"), b"one"), (member("X.TXT"), b"two")))


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="more than is read"):
        opened(tmp_path / "a.zip", zipped((member("x.txt"), bytes(64 << 20))))


def test_text_that_repeats_itself_is_no_bomb(tmp_path: Path) -> None:
    text = b"".join(b"row %d of the very same table, again and again\n" % n for n in range(20_000))
    assert everything(tmp_path / "a.zip", zipped((member("x.txt"), text))) == {"x.txt": text}


def test_a_size_that_is_a_lie_is_noticed(tmp_path: Path) -> None:
    """Both headers say 5 bytes, and 4 MB come out."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(bytes(4 << 20)) + packer.flush()
    head = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 33, zlib.crc32(bytes(5)), len(body), 5, 1, 0) + b"x"
    entry = struct.pack(
        "<4s6H3L5H2L", b"PK\1\2", 0x314, 20, 0, 8, 0, 33, zlib.crc32(bytes(5)), len(body), 5, 1, 0, 0, 0, 0,
        0o100644 << 16, 0,
    ) + b"x"  # fmt: skip
    start = len(head) + len(body)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), start, 0)
    assert everything(tmp_path / "a.zip", head + body + entry + end) == {"x": bytes(5)}  # and not a byte more


def test_files_that_share_their_data_are_refused(tmp_path: Path) -> None:
    """The second entry of the directory is the first one again, under another name."""
    one = zipped((member("x", stored=True), b"data" * 100), (member("y", stored=True), b"data" * 100))
    second = one.rindex(b"PK\1\2")
    overlapping = bytearray(one)
    overlapping[second + 42 : second + 46] = struct.pack("<L", 0)
    with pytest.raises(BadBundle, match=r"does not begin where|described in two ways"):
        opened(tmp_path / "a.zip", bytes(overlapping))


def changed(at: Callable[[bytes], int], new: bytes) -> bytes:
    data = bytearray(plain())
    place = at(bytes(data))
    data[place : place + len(new)] = new
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (plain() + b"more", "does not end with its directory"),
        (plain()[:-5], "does not end with its directory"),
        (plain()[:30], "does not end with its directory|cut off"),
        (b"PK\3\4 hidden" + plain(), "something between"),
        (changed(lambda d: d.index(b"PK\1\2") + 8, b"\1"), "encrypted"),
        (changed(lambda d: d.index(b"PK\1\2") + 10, b"\x0c"), "not read here"),
        (changed(lambda d: 30, b"OTHER.md!"[:9]), "described in two ways"),
        (changed(lambda d: 14, b"\0\0\0\0"), "described in two ways"),
        (changed(lambda d: d.rindex(b"PK\5\6") + 8, b"\xff\xff\xff\xff"), "lists 65535 files"),
        (changed(lambda d: d.rindex(b"PK\5\6") + 4, b"\1"), "several parts"),
    ],
)
def test_what_no_plain_writer_writes_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(BadBundle, match=why):
        opened(tmp_path / "a.zip", data)


def test_something_between_files_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(member("x"), b"one")
        out.write(b"hidden")
        archive.start_dir = out.tell()
        archive.writestr(member("y"), b"two")
    with pytest.raises(BadBundle, match="does not begin where"):
        opened(tmp_path / "a.zip", out.getvalue())


def test_whatever_bit_is_flipped_there_is_one_sentence_or_the_same_files(tmp_path: Path) -> None:
    whole = plain()
    path = tmp_path / "a.zip"
    refused = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        try:
            found = everything(path, bytes(data))
        except TraceError as error:
            refused += "\n" not in str(error)
        else:
            assert found == FILES, place  # times, versions and attributes decide nothing
    assert refused > len(whole) * 0.8


def test_whatever_is_cut_off_there_is_one_sentence(tmp_path: Path) -> None:
    whole = plain()
    for size in range(len(whole)):
        with pytest.raises(TraceError):
            everything(tmp_path / "a.zip", whole[:size])
