"""What came of checks as a Perfetto trace, parsed back with its published schema."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from tracereplay.checks.results import Result, Results
from tracereplay.checks.table import Check
from tracereplay.comparator import Policy, compare_traces
from tracereplay.comparator.numbers.by_call import errors_by_call
from tracereplay.engines.toy import Flaw, record, replay, workload
from tracereplay.errors import UsageError
from tracereplay.report.checks import perfetto
from tracereplay.trace import open_trace

protos = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
SITE = "model.layers.1.mlp.act_fn"


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Golden, and a replay with a flaw at `SITE`."""
    folder = tmp_path_factory.mktemp("traces")
    golden = record(workload(), folder / "golden.trace")
    replay(golden, folder / "candidate.trace", flaw=Flaw(SITE, "scale"))
    return folder / "golden.trace", folder / "candidate.trace"


def test_the_error_of_each_call_is_that_of_the_verdict_at_its_worst(traces: tuple[Path, Path]) -> None:
    verdict = compare_traces(*traces)
    with open_trace(traces[0]) as golden, open_trace(traces[1]) as candidate:
        found = errors_by_call(golden, candidate, Policy())
        assert found is not None
        assert len(found.errors) == sum(len(step.calls) for step in golden.steps("record"))
    worst: dict[str, float] = defaultdict(float)
    for order, error in enumerate(found.errors.tolist()):
        worst[found.calls[order].site] = max(worst[found.calls[order].site], error)
    assert worst == {o.site: pytest.approx(o.metrics.allowance_ratio) for o in verdict.operators}
    assert {site for site, error in worst.items() if error} == {SITE}


def test_steps_and_operators_nest_and_the_counter_rises_at_the_fault(traces: tuple[Path, Path]) -> None:
    verdict = compare_traces(*traces)
    failed = Result(Check("failed\x1b", "a", "v1"), 4, error="It failed.")
    found = Results(Path("c.toml"), (Result(Check("row", "a", "v1"), 1, 1.0, verdict, traces=traces), failed))
    data = perfetto.render(found)
    assert perfetto.MARK in data[:100]
    trace = protos.Trace.FromString(data)
    described = [p.track_descriptor for p in trace.packet if p.HasField("track_descriptor")]
    names = {d.uuid: d.name or d.process.process_name for d in described}
    assert list(names.values()) == ["row", "steps", "operators", "error over allowance", "failed\\x1b"]
    kinds = protos.TrackEvent
    depth: dict[str, int] = defaultdict(int)
    errors: dict[str, set[float]] = defaultdict(set)
    open_site, now, steps = "", 0, 0
    for packet in trace.packet:
        if not packet.HasField("track_event"):
            continue
        event, track = packet.track_event, names[packet.track_event.track_uuid]
        if track != "failed\\x1b":
            assert packet.timestamp >= now
            now = packet.timestamp
        if event.type == kinds.TYPE_SLICE_BEGIN:
            depth[track] += 1
            steps += track == "steps"
            if track == "operators":
                assert depth["steps"] == 1
                open_site = event.name
        elif event.type == kinds.TYPE_SLICE_END:
            depth[track] -= 1
        elif event.type == kinds.TYPE_COUNTER:
            errors[open_site].add(event.double_counter_value)
    assert set(depth.values()) == {0}
    with open_trace(traces[0]) as golden:
        assert steps == len(golden)
    assert max(errors[SITE]) > 1
    assert {error for site, values in errors.items() if site != SITE for error in values} == {0.0}


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perfetto, "_MODULE", "no_such_module")
    with pytest.raises(UsageError, match=r"pip install 'tracereplay\[perfetto\]'"):
        perfetto.check_perfetto()
