"""A step by its form says what the step says."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_served_trace import begun, engine

from tracereplay.event import Step, Value
from tracereplay.trace import SegmentReader, Trace, chunk, forms, open_trace
from tracereplay.trace.forms import ELSEWHERE, StepRecord
from tracereplay.trace.joined import JoinedSegments

FIXTURES = Path(__file__).parents[2] / "fixtures"
TRACES = ["format-1/golden.trace", "format-1/corners.trace", "format-1/cut.trace", "format-1/ranks.trace",
          "format-1/candidate.pack", "tiny-llama-v0.trace", "tiny-llama-v0-kernels.trace"]  # fmt: skip


def value_of(value: Value) -> tuple[Any, ...]:
    return value.dtype, value.shape, value.strides, value.load()


def by_step(step: Step) -> Any:
    calls = [
        (c.site, c.number, [value_of(v) for v in c.inputs], [value_of(v) for v in c.outputs], c.rows_in.tolist(),
         c.rows_out.tolist(), [(i, value_of(v)) for i, v in c.written.items()], c.fed)
        for c in step.calls
    ]  # fmt: skip
    rest = step.sampled, step.notes, step.requests, step.weight_updates, step.census, step.padded
    return step.number, step.rows.tolist(), calls, rest


def by_record(segment: SegmentReader | JoinedSegments, record: StepRecord) -> Any:
    def value(place: int) -> tuple[Any, ...]:
        told = record.form.values[place]
        if told.chunk == ELSEWHERE:
            told = told._replace(**dict(zip(told._fields[6:], record.elsewhere[place], strict=True)))
        elif told.chunk >= 0:
            told = told._replace(chunk=told.chunk + record.chunk)
        return told.dtype, told.shape, told.strides, segment.load(told)

    calls = [
        (c.site, c.number, [value(v) for v in c.inputs], [value(v) for v in c.outputs],
         record.maps[c.rows_in].tolist(), record.maps[c.rows_out].tolist(), [(i, value(v)) for i, v in c.written],
         c.fed)
        for c in record.form.calls
    ]  # fmt: skip
    rest = record.sampled, record.notes, record.requests, record.weight_updates, record.census, record.padded
    return record.number, record.rows.tolist(), calls, rest


def segments(trace: Trace) -> Iterator[SegmentReader | JoinedSegments]:
    for name in trace.passes:
        for rank in trace.ranks(name):
            yield trace.segment(name, rank)


@pytest.mark.parametrize("name", TRACES)
def test_a_record_says_what_the_step_says(name: str) -> None:
    for segment in segments(open_trace(FIXTURES / name)):
        assert [by_record(segment, r) for r in segment.records()] == [by_step(s) for s in segment.steps()]
        assert [r.place for r in segment.records()] == list(range(len(segment)))


def test_records_of_several_engines_are_renumbered_as_their_steps_are(tmp_path: Path) -> None:
    directory = begun(tmp_path / "a.trace")
    for number, prompts in enumerate([[(1, 2), (3,)], [(4, 5)], [(6,)]]):
        engine(directory.path, number, prompts).close({})
    segment = open_trace(directory.path).segment("record")
    assert isinstance(segment, JoinedSegments)
    assert [by_record(segment, r) for r in segment.records()] == [by_step(s) for s in segment.steps()]
    assert {r.number for r in segment.records()} == set(range(9))
    assert segment.outline().steps == 9
    assert [line.requests for line in segment.outline().first] == [(0, 1)] * 3 + [(2,)] * 3


def test_steps_of_one_form_have_one_object_that_is_let_go_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = open_trace(FIXTURES / "tiny-llama-v0.trace").segment("record")
    first, second, third, *_ = segment.records()
    assert first.form is not second.form
    assert second.form is third.form
    monkeypatch.setattr(forms, "KEPT", 1)
    segment = open_trace(FIXTURES / "tiny-llama-v0.trace").segment("record")
    held = segment.record(1).form
    assert segment.record(0).form is not held
    assert segment.record(2).form is held
    assert isinstance(segment, SegmentReader)
    del held
    segment.record(0)
    gc.collect()
    assert len(segment._forms._known) == 1


def test_chunks_with_equal_headers_share_their_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = open_trace(FIXTURES / "tiny-llama-v0.trace").segment("record")
    one, other = (segment.chunk(segment.record(place).chunk)[1] for place in (3, 4))
    assert one is other
    assert segment.chunk(0)[1] is not one
    monkeypatch.setattr(chunk, "KEPT", 0)
    monkeypatch.setattr(chunk, "_headers", chunk._Headers())
    again = open_trace(FIXTURES / "tiny-llama-v0.trace").segment("record")
    assert again.chunk(again.record(5).chunk)[1] == one
    assert not chunk._headers._known
