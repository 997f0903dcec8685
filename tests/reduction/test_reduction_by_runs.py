"""Reduction by an engine's replays: processes of the toy's, started once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import tracereplay
from tracereplay.comparator import compare_traces
from tracereplay.engines.toy.checkpoint import write_checkpoint
from tracereplay.engines.toy.library import LLM
from tracereplay.launch import Configured
from tracereplay.launch.jobs import record, replay
from tracereplay.reduction import Reduced, reduce
from tracereplay.trace import open_trace
from tracereplay.trace.cutting import Cut, Cutter
from tracereplay.workload import Workload

ENGINE = Configured("toy", Path(sys.executable), {}, {}, "toy")
PROMPTS = [[(7 * seed + 3 * i) % 128 for i in range(8 + seed)] for seed in range(4)]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_checkpoint(folder / "model")
    return record(ENGINE, Workload.of(folder / "model", PROMPTS, max_tokens=5), folder / "golden.trace")


def narrow(golden: Path, folder: Path, **settings: object) -> tuple[Reduced, list[str]]:
    candidate = replay(ENGINE, golden, folder / "whole.trace", settings=settings)
    lines: list[str] = []
    found = reduce(golden, candidate, folder / "small", engine=ENGINE, settings=settings, progress=lines.append)
    return found, lines


def called(path: Path, name: str = "record") -> set[str]:
    with open_trace(path) as trace:
        return {call.site for step in trace.steps(name) for call in step.calls}


def test_operators_whose_inputs_are_golden_anyway_need_not_be_fed(golden: Path, tmp_path: Path) -> None:
    site = "model.layers.1.mlp.act_fn"
    found, lines = narrow(golden, tmp_path, flaw=f"{site}:scale")
    assert found.same, found.what
    assert called(found.golden) == called(found.candidate, "injected") == {site}
    assert sum(line.startswith("Starting the engine") for line in lines) == 1
    assert found.what[-1] == "Replayed by toy, golden shows the same."
    again = replay(ENGINE, found.golden, tmp_path / "again.trace", settings={"flaw": f"{site}:scale"})
    first = compare_traces(found.golden, again).first_divergence
    assert first is not None
    assert (first.kind, first.site, first.error_class) == ("operator", site, "exceeds")


def test_operators_that_must_be_fed_stay(golden: Path, tmp_path: Path) -> None:
    """What arrives would differ by itself: an engine that rounds otherwise runs before."""
    site = "model.layers.1.mlp.act_fn"
    settings = {"flaw": f"{site}:scale", "rounding": "twice"}
    found, _ = narrow(golden, tmp_path, **settings)
    assert found.same, found.what
    first = found.verdict.first_divergence
    assert first is not None
    assert (first.kind, first.site) == ("operator", site)
    again = compare_traces(
        found.golden, replay(ENGINE, found.golden, tmp_path / "again.trace", settings=settings)
    ).first_divergence
    assert again is not None
    assert (again.kind, again.site, again.error_class) == (first.kind, first.site, first.error_class)


def test_a_fault_that_only_a_large_batch_has_keeps_its_requests(golden: Path, tmp_path: Path) -> None:
    """The traces alone would show it with one request; a replay of that would not."""
    flaw = "model.layers.0.mlp.act_fn:crowded:24"  # rows: any three of the prompts
    candidate = replay(ENGINE, golden, tmp_path / "alone.trace", settings={"flaw": flaw})
    alone = reduce(golden, candidate, tmp_path / "a")
    found, _ = narrow(golden, tmp_path, flaw=flaw)
    assert alone.same
    assert found.same, found.what
    with open_trace(alone.golden) as one, open_trace(found.golden) as several:
        assert (len(one.run.prompts), len(several.run.prompts)) == (1, 3)


def test_where_no_replay_shows_it_what_was_compared_is_kept_and_told(golden: Path, tmp_path: Path) -> None:
    site = "model.layers.1.mlp.act_fn"
    candidate = replay(ENGINE, golden, tmp_path / "whole.trace", settings={"flaw": f"{site}:scale"})
    found = reduce(golden, candidate, tmp_path / "small", engine=ENGINE)  # without the flaw
    assert found.same, found.what
    assert found.what[-1].startswith("No replay by toy of a part showed the same")


def test_prompts_are_shortened_where_golden_can_be_recorded_anew(golden: Path, tmp_path: Path) -> None:
    site = "model.layers.1.mlp.act_fn"
    settings = {"flaw": f"{site}:scale"}
    candidate = replay(ENGINE, golden, tmp_path / "whole.trace", settings=settings)
    found = reduce(golden, candidate, tmp_path / "small", engine=ENGINE, settings=settings, golden_engine=ENGINE)
    assert found.same, found.what
    assert found.what[-2].startswith("Recorded anew by toy, with prompts of at most 1 of ")
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["candidate.trace", "golden.trace"]
    with open_trace(found.golden) as trace:
        (prompt,) = trace.run.prompts
        assert len(prompt.token_ids or ()) == 1
        assert called(found.golden) == {site}
    again = compare_traces(found.golden, replay(ENGINE, found.golden, tmp_path / "again.trace", settings=settings))
    assert again.first_divergence is not None
    assert again.first_divergence.site == site


def test_where_golden_cannot_be_recorded_anew_what_was_replayed_stays(golden: Path, tmp_path: Path) -> None:
    site = "model.layers.1.mlp.act_fn"
    settings = {"flaw": f"{site}:scale"}
    candidate = replay(ENGINE, golden, tmp_path / "whole.trace", settings=settings)
    dies = tmp_path / "python"
    dies.write_text("#!/bin/sh\necho 'RuntimeError: no room for two' >&2\nexit 1\n")
    dies.chmod(0o755)
    broken = Configured("broken", dies, {}, {}, "toy")
    found = reduce(golden, candidate, tmp_path / "small", engine=ENGINE, settings=settings, golden_engine=broken)
    assert found.same, found.what
    assert "could not be shortened further" in found.what[-2]
    assert called(found.golden) == {site}
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["candidate.trace", "golden.trace"]


def test_requests_of_several_engines_under_one_command_become_those_of_one(tmp_path: Path) -> None:
    """No manifest says what they were asked for or gave: their steps do."""
    write_checkpoint(tmp_path / "model")
    with tracereplay.recording(tmp_path / "served.trace"):
        llm = LLM(tmp_path / "model")
        for prompts in ([[1, 2, 3, 4], [9, 8, 7]], [[11, 12, 13, 14, 15], [19, 18]]):
            llm.generate(prompts, max_tokens=5)
    served, flaw = tmp_path / "served.trace", {"flaw": "model.layers.1.mlp.act_fn:element"}
    candidate = replay(ENGINE, served, tmp_path / "whole.trace", settings=flaw, model=tmp_path / "model")
    found = reduce(served, candidate, tmp_path / "small")
    assert found.same, found.what
    with open_trace(found.golden) as trace:
        assert (trace.parts, trace.complete, len(trace.run.prompts)) == ((("record", 0),), True, 1)
    again = replay(ENGINE, found.golden, tmp_path / "again.trace", settings=flaw, model=tmp_path / "model")
    first = compare_traces(found.golden, again).first_divergence
    assert first is not None
    assert first.site == "model.layers.1.mlp.act_fn"
    with open_trace(served) as trace:
        Cutter(trace).cut(tmp_path / "last.trace", Cut((3,), {3: 2}))
        tokens = {s.key: s.token for step in trace.steps("record") for s in step.sampled if s.key.request == 3}
    with open_trace(tmp_path / "last.trace") as last:
        assert [prompt.token_ids for prompt in last.run.prompts] == [(19, 18)]
        kept = {s.key: s.token for step in last.steps("record") for s in step.sampled}
        assert kept == {key._replace(request=0): tokens[key] for key in sorted(tokens)[:2]}
