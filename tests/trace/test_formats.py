"""Every version reads the traces of all versions before: what they held when they were written is what is read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tracereplay.errors import TraceError
from tracereplay.storage.files import LocalFile
from tracereplay.trace import SegmentReader, Trace, open_trace
from tracereplay.trace.digest import content_digest
from tracereplay.trace.frames import Tag, scan
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.manifest import FORMAT, read_manifest, write_manifest
from tracereplay.trace.upgrade import is_current
from tracereplay.trace.verify import verify

FIXTURES = Path(__file__).parents[2] / "fixtures"
NAMES = {"golden.trace": None, "candidate.pack": "golden.trace", "rows.pack": "golden.trace", "cut.trace": None,
         "corners.trace": None, "odd.pack": "corners.trace", "ranks.trace": None}  # fmt: skip
TRACES = [(version, name) for version in (1, 2) for name in NAMES] + [(2, "forms.trace")]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that wrote them, for the words in which it described them."""
    spec = importlib.util.spec_from_file_location("make_format", FIXTURES / "make_format.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def opened(version: int, name: str) -> Trace:
    folder = FIXTURES / f"format-{version}"
    base = NAMES.get(name)
    return open_trace(folder / name, None if base is None else open_trace(folder / base))


def twin(version: int, name: str) -> object:
    return json.loads((FIXTURES / f"format-{version}" / f"{name.split('.')[0]}.json").read_text())


@pytest.mark.parametrize(("version", "name"), TRACES)
def test_a_trace_of_any_version_reads_as_it_was_written(script: ModuleType, version: int, name: str) -> None:
    trace = opened(version, name)
    assert trace.manifest["format"] == version
    assert json.loads(json.dumps(script.described(trace))) == twin(version, name)
    beside = open_trace(FIXTURES / f"format-{version}" / name)  # the base lies beside it
    assert json.loads(json.dumps(script.described(beside))) == twin(version, name)


@pytest.mark.parametrize("version", [1, 2])
def test_truncated_traces_are_recoverable_and_the_others_complete(version: int) -> None:
    states = {name: {r.state for r in verify(opened(v, name))} for v, name in TRACES if v == version}
    assert {name for name, found in states.items() if "recoverable" in found} == {"cut.trace", "ranks.trace"}
    assert not any("damaged" in found for found in states.values())


@pytest.mark.parametrize(("version", "name"), TRACES)
def test_packing_upgrades_a_trace_and_keeps_its_digest(
    script: ModuleType, tmp_path: Path, version: int, name: str
) -> None:
    expected = twin(version, name)
    trace = opened(version, name)
    pack_trace(trace, tmp_path / "a.pack")
    base = NAMES.get(name)
    packed = open_trace(
        tmp_path / "a.pack", None if base is None else open_trace(FIXTURES / f"format-{version}" / base)
    )
    assert packed.manifest["format"] == FORMAT
    assert {r.state for r in verify(packed)} == {r.state for r in verify(trace)}
    assert json.loads(json.dumps(script.described(packed))) == expected
    for key in trace.parts:
        assert content_digest(packed.part(key)) == content_digest(trace.part(key))
        assert is_current(packed.part(key))
        if version == FORMAT:
            assert packed.file(key).read(0, packed.file(key).size) == trace.file(key).read(0, trace.file(key).size)


@pytest.mark.parametrize(("version", "name"), TRACES)
def test_compressing_strongly_keeps_the_digest_too(version: int, name: str, tmp_path: Path) -> None:
    trace = opened(version, name)
    pack_trace(trace, tmp_path / "a.pack", level=3)
    packed = open_trace(tmp_path / "a.pack")
    assert packed.digest() == trace.digest()
    assert {r.state for r in verify(packed)} == {r.state for r in verify(trace)}


@pytest.mark.parametrize("name", ["tiny-llama-v0.trace", "tiny-llama-v0-kernels.trace"])
def test_a_recording_of_an_engine_keeps_its_digest_and_says_each_form_once(name: str, tmp_path: Path) -> None:
    trace = open_trace(FIXTURES / name)
    pack_trace(trace, tmp_path / "a.pack")
    packed = open_trace(tmp_path / "a.pack")
    assert packed.digest() == trace.digest()
    assert content_digest(packed.part(("record", 0))) == content_digest(trace.part(("record", 0)))
    before, after = (t.segment("record") for t in (trace, packed))
    assert [[k.name for k in s.kernels] for s in after.steps()] == [
        [k.name for k in s.kernels] for s in before.steps()
    ]
    assert isinstance(after, SegmentReader)
    assert len(after.index.forms) == len({id(record.form) for record in list(after.records())})
    if name == "tiny-llama-v0.trace":
        assert (len(after.index.forms), len(after)) == (2, 16)


def test_a_packed_trace_of_version_1_needs_no_base_to_be_upgraded(tmp_path: Path) -> None:
    alone = tmp_path / "alone.pack"
    alone.write_bytes((FIXTURES / "format-1" / "candidate.pack").read_bytes())
    pack_trace(open_trace(alone), tmp_path / "a.pack")
    again = open_trace(tmp_path / "a.pack", open_trace(FIXTURES / "format-1" / "golden.trace"))
    assert again.digest() == opened(1, "candidate.pack").digest()
    assert [r.state for r in verify(again)] == ["complete", "complete"]


def test_the_corner_cases_of_this_version_are_in_its_fixture() -> None:
    """Forms that were forgotten and written again, a step in one piece, a chain of indexes."""
    frames = list(scan(LocalFile(FIXTURES / "format-2" / "forms.trace" / "record-rank0.seg")))
    kinds = [frame.kind for frame in frames]
    assert (kinds.count(Tag.FORM), kinds.count(Tag.STEP)) == (4, 6)
    segment = opened(2, "forms.trace").part(("record", 0))
    records = list(segment.records())
    assert [bool(record.elsewhere) for record in records] == [False, True, True, True, True, True]
    assert len({id(record.form) for record in records}) == 4
    assert records[1].form is records[2].form is records[4].form  # which two FORM frames have
    ranks = opened(2, "ranks.trace").part(("record", 2))
    assert ranks.summary is not None
    assert len(ranks.summary["indexes"]) > 2


def test_a_segment_lacks_what_a_reader_of_version_1_looks_for_first() -> None:
    """Which makes it say that the segment is damaged: at the end mark of a closed one, at a step of another."""
    segment = opened(2, "golden.trace").part(("record", 0))
    assert segment.summary is not None
    assert "index" not in segment.summary
    assert all("values" not in segment._step_record(place) for place in range(len(segment)))


def test_a_manifest_of_a_later_version_is_refused_with_a_sentence() -> None:
    later = write_manifest({"format": FORMAT + 2, "state": "complete", "run": {}, "passes": {}})
    with pytest.raises(
        TraceError, match=r"is of format 4; this version reads formats 1 to 3; update tracereplay\.$"
    ):
        read_manifest(later, "manifest.json")
