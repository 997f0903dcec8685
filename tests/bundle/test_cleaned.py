"""A cleaned trace has every row, token, tensor and kernel of the one that it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tracereplay.bundle.allowed import Cleaner
from tracereplay.bundle.cleaned import write_cleaned
from tracereplay.comparator import compare_traces
from tracereplay.engines import toy
from tracereplay.errors import UsageError
from tracereplay.event import Call, Kernel, Opaque, Value, flatten
from tracereplay.passes import RECORD
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.verify import verify

FIXTURES = Path(__file__).parents[2] / "fixtures"
TRACES = (
    "tiny-llama-v0.trace", "tiny-llama-v0-kernels.trace",
    "format-2/golden.trace", "format-2/candidate.pack", "format-2/corners.trace", "format-2/cut.trace",
    "format-2/forms.trace", "format-2/odd.pack", "format-2/ranks.trace", "format-2/rows.pack",
    "format-1/golden.trace", "format-1/odd.pack",
)  # fmt: skip


def value(found: Value) -> tuple[Any, ...]:
    return found.dtype, found.shape, found.strides, found.storage, found.start, found.version, found.load()


def call(found: Call) -> tuple[Any, ...]:
    values = [(side, index, value(one)) for side, index, one in found.values()]
    return found.site, found.number, found.rows_in.tolist(), found.rows_out.tolist(), found.fed, values


def argument(given: Any) -> Any:
    if isinstance(given, Value):
        return value(given)
    if isinstance(given, Opaque):
        return given.kind, given.text, None if given.state is None else value(given.state)
    return repr(given)


def kernel(found: Kernel) -> tuple[Any, ...]:
    parts = [argument(one) for one in flatten((*found.given, *found.outputs))]
    return found.name, found.schema, found.site, found.call, found.parent, parts, found.undeclared


def contents(trace: Trace) -> Iterator[Any]:
    for name in trace.passes:
        for rank in trace.ranks(name):
            segment = trace.segment(name, rank)
            yield name, rank, dict(segment.sites)
            for step in segment.steps():
                yield step.number, step.rows.tolist(), step.sampled, step.weight_updates, step.padded, step.census
                yield from map(call, step.calls)
                yield from map(kernel, step.kernels)
                yield step.company, [(r.request, r.sequence, r.prompt_token_ids) for r in step.requests]


@pytest.mark.parametrize("name", TRACES)
def test_nothing_that_was_computed_is_lost(name: str, tmp_path: Path) -> None:
    with open_trace(FIXTURES / name) as trace:
        base = FIXTURES / name.replace("candidate.pack", "golden.trace")
        if name.endswith("candidate.pack"):
            trace.offer_base(open_trace(base))
        write_cleaned(trace, tmp_path / "cleaned.pack", Cleaner(texts=True))
        with open_trace(tmp_path / "cleaned.pack") as cleaned:
            assert list(contents(cleaned)) == list(contents(trace))
            assert cleaned.complete == trace.complete
            assert {report.state for report in verify(cleaned)} <= {"complete", "recoverable"}
            assert cleaned.run.weights == trace.run.weights
            assert cleaned.run.checkpoint == trace.run.checkpoint
            assert [p.token_ids for p in cleaned.run.prompts] == [p.token_ids for p in trace.run.prompts]
            assert cleaned.requests == ()


def test_a_cleaned_trace_is_equal_to_the_other_in_every_bit(tmp_path: Path) -> None:
    golden = FIXTURES / "tiny-llama-v0.trace"
    with open_trace(golden) as trace:
        write_cleaned(trace, tmp_path / "cleaned.pack", Cleaner(texts=False))
    verdict = compare_traces(golden, tmp_path / "cleaned.pack")
    assert verdict.matches
    assert {finding.error_class for finding in verdict.operators} == {"identical"}


def test_a_replay_stays_one_of_its_golden_trace(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden.trace")
    candidate = toy.replay(golden, tmp_path / "candidate.trace")
    cleaner = Cleaner(texts=True)
    with open_trace(golden) as mine, open_trace(candidate) as theirs:
        write_cleaned(mine, tmp_path / "golden.pack", cleaner)
        with open_trace(tmp_path / "golden.pack") as cleaned:
            renamed = {mine.digest(): cleaned.digest()}
        write_cleaned(theirs, tmp_path / "candidate.pack", cleaner, renamed)
    assert compare_traces(tmp_path / "golden.pack", tmp_path / "candidate.pack").mode == "injected"
    assert compare_traces(tmp_path / "golden.pack", tmp_path / "candidate.pack").matches
    with open_trace(tmp_path / "golden.pack") as cleaned:
        assert cleaned.sites(RECORD)


def test_an_encrypted_trace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden.trace")
    with open_trace(golden) as trace:
        monkeypatch.setattr(Trace, "sealed", True)
        with pytest.raises(UsageError, match="is encrypted, and a bundle is for others to read"):
            write_cleaned(trace, tmp_path / "cleaned.pack", Cleaner(texts=True))
