"""One file or a directory, here or at a URL, stored plainly or as a difference: the same trace."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest

import tracereplay
from tracereplay.errors import DamagedTrace, NotATrace, TraceError, UsageError
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.verify import values_of, verify


def everything(trace: Trace) -> list[object]:
    """All that a trace holds, tensors included."""
    found: list[object] = [dict(trace.manifest["run"]), dict(trace.results)]
    for name, rank in trace.parts:
        segment = trace.segment(name, rank)
        found += [name, rank, segment.meta, dict(segment.sites), segment.complete]
        for step in segment.steps():
            found += [step.number, step.rows.tolist(), step.sampled, step.notes, step.requests]
            found += [(v.dtype, v.shape, v.strides, v.load()) for v in values_of(step)]
    return found


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.iterdir())


@pytest.mark.parametrize("level", [None, 3, 19])
def test_a_packed_trace_has_the_same_contents_as_the_directory(
    golden: Path, tmp_path: Path, level: int | None
) -> None:
    whole = open_trace(golden)
    pack_trace(whole, tmp_path / "golden.pack", level=level)
    packed = open_trace(tmp_path / "golden.pack")
    assert packed.packed
    assert packed.complete
    assert everything(packed) == everything(whole)
    assert packed.digest() == whole.digest()
    assert [report.state for report in verify(packed)] == ["complete"]
    if level is None:
        segment = (golden / "record-rank0.seg").read_bytes()
        assert segment in (tmp_path / "golden.pack").read_bytes()
    if level == 19:
        assert size(tmp_path / "golden.pack") < size(golden)


def test_a_candidate_is_stored_as_its_difference_from_golden(
    golden: Path, candidate: Path, tmp_path: Path
) -> None:
    shutil.copytree(golden, tmp_path / "golden.trace")
    base = open_trace(tmp_path / "golden.trace")
    pack_trace(open_trace(candidate), tmp_path / "delta.trace", base=base)
    pack_trace(open_trace(candidate), tmp_path / "plain.trace", level=19)
    assert size(tmp_path / "delta.trace") < 0.8 * size(tmp_path / "plain.trace")
    for opened in (open_trace(tmp_path / "delta.trace"), open_trace(tmp_path / "delta.trace", base)):
        assert everything(opened)[2:] == everything(open_trace(candidate))[2:]
        assert opened.digest() == open_trace(candidate).digest()
        assert {report.state for report in verify(opened)} == {"complete"}


def test_a_difference_without_its_base_says_what_is_needed(golden: Path, candidate: Path, tmp_path: Path) -> None:
    pack_trace(open_trace(candidate), tmp_path / "delta.trace", base=open_trace(golden))
    with pytest.raises(TraceError, match=r"difference from golden.trace .* put it there"):
        everything(open_trace(tmp_path / "delta.trace"))
    with pytest.raises(TraceError, match="difference from a trace with the digest"):
        open_trace(tmp_path / "delta.trace", open_trace(candidate))
    with pytest.raises(UsageError, match="is itself stored as a difference"):
        pack_trace(
            open_trace(golden), tmp_path / "x", base=open_trace(tmp_path / "delta.trace", open_trace(golden))
        )


def test_packing_a_difference_at_a_level_makes_it_stand_alone(
    golden: Path, candidate: Path, tmp_path: Path
) -> None:
    pack_trace(open_trace(candidate), tmp_path / "delta.trace", base=open_trace(golden))
    pack_trace(open_trace(tmp_path / "delta.trace", open_trace(golden)), tmp_path / "alone.trace", level=9)
    assert everything(open_trace(tmp_path / "alone.trace")) == everything(open_trace(candidate))


def test_an_interrupted_recording_is_packed_as_it_is(golden: Path, tmp_path: Path) -> None:
    shutil.copytree(golden, tmp_path / "cut.trace")
    segment = tmp_path / "cut.trace" / "record-rank0.seg"
    segment.write_bytes(segment.read_bytes()[: segment.stat().st_size * 2 // 3])
    cut = open_trace(tmp_path / "cut.trace")
    assert 0 < len(cut.steps("record")) < len(open_trace(golden).steps("record"))
    for level in (None, 9):
        pack_trace(cut, tmp_path / f"{level}.pack", level=level)
        packed = open_trace(tmp_path / f"{level}.pack")
        assert not packed.complete
        assert everything(packed) == everything(cut)


def test_an_existing_path_is_not_replaced_without_force(golden: Path, tmp_path: Path) -> None:
    out = tmp_path / "golden.pack"
    out.write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        pack_trace(open_trace(golden), out)
    with pytest.raises(UsageError, match="is a file that is not a trace, so it is not replaced"):
        pack_trace(open_trace(golden), out, force=True)
    assert out.read_text() == "mine"
    out.unlink()
    pack_trace(open_trace(golden), out, level=3)
    before = out.stat().st_ino
    pack_trace(open_trace(golden), out, force=True)
    assert open_trace(out).complete
    assert out.stat().st_ino != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["golden.pack"]


def test_refuses_a_pack_that_is_truncated_or_not_a_pack(golden: Path, tmp_path: Path) -> None:
    pack_trace(open_trace(golden), tmp_path / "whole.pack")
    data = (tmp_path / "whole.pack").read_bytes()
    bad = tmp_path / "bad.pack"
    for end in range(0, len(data), 997):
        bad.write_bytes(data[:end])
        with pytest.raises(TraceError):
            open_trace(bad)
    bad.write_bytes(data[:-1])
    with pytest.raises(DamagedTrace, match="truncated"):
        open_trace(bad)
    with pytest.raises(NotATrace, match="neither a directory of one nor a packed one"):
        open_trace(golden / "record-rank0.seg")


def test_any_changed_byte_of_a_pack_is_noticed(golden: Path, tmp_path: Path) -> None:
    pack_trace(open_trace(golden), tmp_path / "whole.pack")
    whole = everything(open_trace(tmp_path / "whole.pack"))
    data = bytearray((tmp_path / "whole.pack").read_bytes())
    bad = tmp_path / "bad.pack"
    for at in range(0, len(data), 601):
        data[at] ^= 0x10
        bad.write_bytes(data)
        data[at] ^= 0x10
        try:
            trace = open_trace(bad)
            found, complete = everything(trace), trace.complete
        except TraceError:
            continue
        assert found == whole or not complete
        assert [r.state for r in verify(trace)] != ["complete"]


# -- at a URL -------------------------------------------------------------------------------------------------


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A file server that gives ranges, and counts what it gives."""

    given: list[int]

    def send_head(self):  # type: ignore[no-untyped-def]
        asked = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if not path.is_file() or asked is None:
            return super().send_head()
        start, end = asked.removeprefix("bytes=").split("-")
        data = path.read_bytes()
        part = data[int(start) : int(end) + 1]
        self.given.append(len(part))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    given: list[int] = []
    handler = type("Handler", (Ranges,), {"given": given})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path))) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", given
        served.shutdown()
        thread.join()


def test_one_call_at_a_url_is_read_with_range_requests(
    golden: Path, tmp_path: Path, server: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("BEGINNING", "END", "BEFORE", "AFTER"):
        monkeypatch.setattr(f"tracereplay.storage.remote.{limit}", 4096)  # the toy's traces are small
    url, given = server
    pack_trace(open_trace(golden), tmp_path / "golden.pack")
    trace = tracereplay.open_trace(f"{url}/golden.pack")
    step = trace.segment("record").step(3)
    assert (
        step.calls[5].outputs[0].load() == open_trace(golden).segment("record").step(3).calls[5].outputs[0].load()
    )
    assert sum(given) < 0.6 * size(tmp_path / "golden.pack")
    assert everything(trace) == everything(open_trace(golden))


def test_a_missing_url_is_reported_in_a_sentence(server: tuple[str, list[int]]) -> None:
    with pytest.raises(NotATrace, match="There is no trace at"):
        open_trace(f"{server[0]}/absent.pack")
    with pytest.raises(UsageError, match="cannot be opened"):
        open_trace("nosuchprotocol://somewhere/golden.pack")
    with pytest.raises(TraceError, match="cannot be reached"):
        open_trace("http://127.0.0.1:9/golden.pack")


def test_directories_and_packs_open_from_a_url(golden: Path, tmp_path: Path) -> None:
    pack_trace(open_trace(golden), tmp_path / "golden.pack")
    memory = fsspec.filesystem("memory")
    memory.put(str(golden), "/traces/golden.trace", recursive=True)
    memory.put(str(tmp_path / "golden.pack"), "/traces/golden.pack")
    local = everything(open_trace(golden))
    for name in ("golden.trace", "golden.pack"):
        assert everything(open_trace(f"memory://traces/{name}")) == local


def test_refuses_a_url_of_a_directory_that_is_not_a_trace(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/other/file.txt", b"x")
    with pytest.raises(NotATrace, match="is not a trace"):
        open_trace("memory://other")
