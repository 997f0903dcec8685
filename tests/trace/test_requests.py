"""Files that say who asked for what: what was written is read, whatever became of the process that wrote it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import second_reader

from tracereplay.errors import DamagedTrace
from tracereplay.event import Request, RowKey, Sampled, Site, make_rows
from tracereplay.storage.files import LocalFile
from tracereplay.trace import PendingCall, SegmentWriter, Trace, TraceDirectory, open_trace, segment_path
from tracereplay.trace.directory import part_name
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.known import found_by
from tracereplay.trace.place import Place
from tracereplay.trace.requests import (
    Identity,
    Moment,
    RequestFile,
    bounded,
    described,
    read_identities,
    record_of,
)
from tracereplay.trace.verify import repair, verify

SITE = Site("model.norm", "RMSNorm", 77, ("x",))
META = {"world": 1, "model": "/models/m", "engine": {}, "engines": 1, "served": ["tiny"]}
FIRST = Identity(
    "cmpl-7f-0-01234567", "cmpl-7f-0", Moment(10**18, 5), Moment(10**18 + 7, 12), "stop", ".", adapter="mine",
    priority=-3, prompt=2, tokens=4, fields={"user": "alice"},
)  # fmt: skip
SECOND = Identity("1_chatcmpl-abc-89abcdef", "chatcmpl-abc", Moment(10**18 + 1, 6), sample=1)


def served(path: Path, *names: str | None, engine: int = 0, closed: bool = True) -> Trace:
    """A recorded command's segment: its requests begin one in each step, and each step gives each a token."""
    if not path.exists():
        TraceDirectory(path, {"kind": "recording", "notes": [], "command": ["vllm", "serve"]})
    writer = SegmentWriter(segment_path(path, part_name("record", engine), 0), {**META, "rank": 0})
    writer.sites([SITE])
    for number, name in enumerate(names):
        keys = [RowKey(request, 0, 2 + number - request) for request in range(number + 1)]
        rows = make_rows([(r, s, p - 1) for r, s, p in keys])
        sampled = [Sampled(key, 9, 9, None) for key in keys]
        begun = [Request(number, 0, (1, 2), {"max_tokens": 4}, name)]
        writer.step(number, rows, [PendingCall(SITE.slot, 0, rows, rows, {}, {})], sampled, [], begun)
    writer.close({}) if closed else writer.abandon()
    return open_trace(path)


def note(path: Path, *identities: Identity) -> Path:
    file = RequestFile(path, {"process": 1})
    for identity in identities:
        file.add(record_of(identity))
    file.close()
    return file.path


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "cut off"])
def test_requests_are_known_by_number_and_by_name(tmp_path: Path, closed: bool) -> None:
    path = tmp_path / "a.trace"
    served(path, FIRST.id, SECOND.id, "nobody-knows", None, closed=closed)
    begun = replace(FIRST, ended=None, reason="", stop=None, tokens=None)
    note(path, begun, Identity("a-request-that-was-not-recorded"), FIRST)
    note(path, SECOND)
    found = open_trace(path).requests
    assert [(k.request, k.sequence, k.step) for k in found] == [(0, 0, 0), (1, 0, 1), (2, 0, 2)]
    assert [k.identity for k in found] == [FIRST, SECOND, Identity("nobody-knows")]
    assert FIRST.client_id == "cmpl-7f"
    assert SECOND.client_id == "chatcmpl-abc"


def test_requests_of_several_engines_have_numbers_of_the_whole_trace(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    served(path, "a", "b")
    served(path, "c", engine=1)
    note(path, Identity("a", "first"), Identity("c", "third"))
    assert [(k.request, k.step, k.identity.name) for k in open_trace(path).requests] == [
        (0, 0, "first"), (1, 1, ""), (2, 2, "third"),
    ]  # fmt: skip


def test_more_ids_than_an_end_mark_tells_are_in_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracereplay.trace.outline.MOST_IDS", 2)
    trace = served(tmp_path / "a.trace", "a", "b", "c")
    assert trace.outline("record").ids is None
    assert [k.identity.id for k in trace.requests] == ["a", "b", "c"]
    assert {report.state for report in verify(trace)} == {"complete"}


def test_a_trace_keeps_them_when_it_is_packed_and_its_digest_without_them(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    served(path, FIRST.id)
    bare = open_trace(path).digest()
    note(path, FIRST)
    note(path, SECOND)
    for name, options in {"copied": {}, "stronger": {"level": 3}}.items():
        pack_trace(open_trace(path), tmp_path / name, **options)
        packed = open_trace(tmp_path / name)
        assert packed.requests == open_trace(path).requests
        assert packed.requests[0].identity == FIRST
        assert packed.digest() == bare
        assert [r.name for r in verify(packed)] == ["record-rank0.seg", "requests-0.req", "requests-1.req"]


def test_a_second_reader_finds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    served(path, FIRST.id)
    begun = replace(FIRST, ended=None, reason="", stop=None, tokens=None)
    data = note(path, begun, SECOND, FIRST).read_bytes()
    pack_trace(open_trace(path), tmp_path / "packed")
    assert second_reader.requests_in_pack((tmp_path / "packed").read_bytes()) == {"requests-0.req": data}
    said = second_reader.requests(data)
    assert said.keys() == {FIRST.id, SECOND.id}
    assert said[FIRST.id] == {
        "id": FIRST.id, "name": "cmpl-7f-0", "arrived": [10**18, 5], "ended": [10**18 + 7, 12], "reason": "stop",
        "stop": ".", "adapter": "mine", "priority": -3, "prompt": 2, "tokens": 4, "fields": {"user": "alice"},
    }  # fmt: skip
    assert said[SECOND.id]["sample"] == 1


def test_whatever_is_cut_off_the_records_before_are_there(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    served(path, FIRST.id)
    file = note(path, FIRST, SECOND)
    data, before = file.read_bytes(), 0
    for size in range(len(data)):
        file.write_bytes(data[:size])
        found = len(read_identities(LocalFile(file)))
        assert found >= before
        before = found
        assert [report.state for report in verify(open_trace(path))][1] in ("complete", "recoverable")
    assert before == 1


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    served(path, FIRST.id)
    file = note(path, FIRST, SECOND)
    data, stated = file.read_bytes(), described(LocalFile(file))
    for at in range(len(data)):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        trace = open_trace(path)
        trace.manifest["run"]["requests"] = {file.name: stated}
        assert [report.state for report in verify(trace)][1] == "damaged", at


def test_what_a_finished_trace_says_of_them_may_be_added_to_and_not_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    served(path, FIRST.id)
    file = note(path, FIRST)
    stated = described(LocalFile(file))
    other = note(tmp_path, FIRST, SECOND)
    whole = other.read_bytes()
    for data, state in ((whole, "complete"), (whole[: stated["size"] - 1], "damaged")):
        file.write_bytes(data)
        trace = open_trace(path)
        trace.manifest["run"]["requests"] = {file.name: stated}
        assert [report.state for report in verify(trace)][1] == state


def test_a_process_that_is_killed_leaves_whole_records(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom tracereplay.trace.requests import *\n"
        "file = RequestFile(Path(sys.argv[1]), {})\n"
        "for number in range(10**9):\n"
        "    file.add(record_of(Identity(str(number), 'x' * 200)))\n"
        "    if number == 300: print(flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    found = read_identities(LocalFile(tmp_path / "requests-0.req"))
    assert len(found) > 300
    assert list(found) == [str(number) for number in range(len(found))]
    assert {identity.name for identity in found.values()} == {"x" * 200}


def test_a_full_disk_tears_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RequestFile(tmp_path, {})
    file.add(record_of(FIRST))
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:40]))
    with pytest.raises(OSError, match="only a part"):
        file.add(record_of(SECOND))
    monkeypatch.undo()
    file.add(record_of(SECOND))
    assert list(read_identities(LocalFile(file.path)).values()) == [FIRST, SECOND]


def test_a_full_disk_leaves_no_files_without_anything_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda fd, data: 0)
    for _ in range(3):
        with pytest.raises(OSError, match="only a part"):
            RequestFile(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_only_its_owner_may_read_a_file(tmp_path: Path) -> None:
    assert note(tmp_path, FIRST).stat().st_mode & 0o777 == 0o600


def test_a_trace_with_them_is_replaced_and_repaired_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    trace = served(path, FIRST.id)
    note(path, FIRST)
    assert repair(open_trace(path)) == ["manifest.json"]
    trace.close()
    place = Place(path, force=True)
    served(place.path, SECOND.id)
    place.put()
    assert open_trace(path).requests[0].identity == Identity(SECOND.id)


def test_long_ids_are_cut_and_stay_apart() -> None:
    one, other = bounded("x" * 5000 + "1"), bounded("x" * 5000 + "2")
    assert one != other
    assert len(one) <= 256
    assert bounded("\ud800" * 300)
    assert bounded("short") == "short"


def test_a_request_is_found_by_any_of_its_names(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    served(path, FIRST.id, SECOND.id, "cmpl-7f9-0-11111111")
    note(path, FIRST, SECOND, Identity("cmpl-7f9-0-11111111", "cmpl-7f9-0"))
    requests = open_trace(path).requests
    numbers = {
        text: [known.request for known in found_by(requests, text)]
        for text in ("cmpl-7f", "cmpl-7f-0", FIRST.id, "7f", "abc", "chatcmpl-a", "cmpl-7", "7f9-", "zzz")
    }
    assert numbers == {
        "cmpl-7f": [0], "cmpl-7f-0": [0], FIRST.id: [0], "7f": [0], "abc": [1], "chatcmpl-a": [1],
        "cmpl-7": [0, 2], "7f9-": [2], "zzz": [],
    }  # fmt: skip


def test_a_file_that_is_not_one_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    served(path, FIRST.id)
    (path / "requests-0.req").write_bytes(b"\x93TRACE\r\n" + bytes(64))
    with pytest.raises(DamagedTrace, match=r"requests-0\.req is damaged"):
        _ = open_trace(path).requests
