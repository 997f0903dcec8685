"""Where only chosen requests are recorded, a trace says which company they kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tracereplay.errors import DamagedTrace
from tracereplay.event import Site, make_rows
from tracereplay.trace import SegmentWriter, TraceDirectory, open_trace, records, segment_path
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.verify import verify

COMPANY = [(0, 0, 7), None, (12, 3, 0), (5, 4, 2)]
SAID = (
    "Batches had other company: in 2 of 4 steps, the engine also computed rows of requests that are not in this "
    "trace: 17 rows, of 4 requests at once at most; 9 more steps had none of this trace's requests."
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "chosen.trace"
    directory = TraceDirectory(path, {"kind": "recording"})
    writer = SegmentWriter(segment_path(path, "record", 0), {})
    writer.sites([Site("model.norm", "RMSNorm", 7)])
    for number, company in enumerate(COMPANY):
        writer.commit(number, make_rows([(0, 0, number)]), [], [], [], company=company)
    writer.close({})
    directory.complete()
    return path


def test_each_step_says_it_and_the_end_says_it_of_all(trace: Path) -> None:
    found = open_trace(trace)
    assert [step.company for step in found.steps("record")] == COMPANY
    assert [step.company for step in found.records("record")] == COMPANY
    assert found.outline("record").company == (2, 17, 4, 9)
    assert found.outline("record").said() == SAID
    assert {report.state for report in verify(found)} == {"complete"}


def test_a_segment_that_was_cut_off_says_it_too(trace: Path) -> None:
    segment = segment_path(trace, "record", 0)
    segment.write_bytes(segment.read_bytes()[:-20])
    assert open_trace(trace).outline("record").said() == SAID


def test_packing_keeps_it(trace: Path, tmp_path: Path) -> None:
    packed = tmp_path / "chosen.pack"
    pack_trace(open_trace(trace), packed)
    shutil.rmtree(trace)
    found = open_trace(packed)
    assert [step.company for step in found.steps("record")] == COMPANY
    assert found.outline("record").said() == SAID


@pytest.mark.parametrize("company", [[1], [1, 2], "abc", [1, 2, -3], [1, 2, None], 5])
def test_what_is_no_company_is_damage(company: object) -> None:
    record = records.write_step(0, [b""], [], [], [], [], [], 0)
    with pytest.raises(DamagedTrace):
        records.read_step({**record, "company": company}, {}, lambda located: b"", lambda *_: None)  # type: ignore[arg-type]
