"""A request is replayed to the length that it had, where it did not end by itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tracereplay.engines import toy
from tracereplay.errors import WorkloadError
from tracereplay.launch.lengths import as_long_as, check_lengths
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.manifest import write_manifest
from tracereplay.workload import Prompt, Workload


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return toy.record(
        toy.workload(((5, 6, 7), (20, 21)), max_tokens=6, sampling={"min_tokens": 5}), tmp_path / "g"
    )


def asked(golden: Path, *, results: bool = False, **sampling: object) -> Trace:
    """The trace as a server leaves it: what was asked for is known, and nobody says how a request ended."""
    manifest = json.loads((golden / "manifest.json").read_text())
    for prompt in manifest["run"]["workload"]["prompts"]:
        prompt["sampling"].update(sampling)
    if not results:
        manifest["passes"] = {}
    (golden / "manifest.json").write_bytes(write_manifest(manifest))
    return open_trace(golden)


def limits(trace: Trace) -> list[tuple[int | None, int | None]]:
    workload = as_long_as(
        trace, Workload("toy", tuple(Prompt(p.token_ids, p.text, p.sampling) for p in trace.run.prompts))
    )
    return [(p.sampling.get("max_tokens"), p.sampling.get("min_tokens")) for p in workload.prompts]


def test_an_aborted_request_is_as_long_as_it_was(golden: Path) -> None:
    assert limits(asked(golden, max_tokens=500, min_tokens=100)) == [(6, 6), (6, 6)]
    assert limits(asked(golden, max_tokens=None)) == [(6, 6), (6, 6)]
    assert limits(asked(golden, max_tokens=3, min_tokens=0)) == [(3, 0), (3, 0)]


def test_a_recording_that_was_cut_off_is_replayed_to_its_last_step(golden: Path) -> None:
    segment = golden / "record-rank0.seg"
    whole = open_trace(golden).steps("record")
    for share in (0.9, 0.6, 0.3, 0.05):
        cut = Path(shutil.copytree(golden, golden.with_name(f"cut-{share}")))
        data = segment.read_bytes()
        (cut / segment.name).write_bytes(data[: int(len(data) * share)])
        trace = asked(cut, max_tokens=500)
        steps = trace.steps("record")
        assert len(steps) < len(whole)
        made = [sum(s.key.request == request for step in steps for s in step.sampled) for request in (0, 1)]
        assert [most for most, _ in limits(trace)] == [max(1, n) for n in made]


def test_a_request_that_ended_by_itself_may_go_on(golden: Path) -> None:
    assert limits(asked(golden, results=True, max_tokens=500)) == [(500, 5), (500, 5)]


def test_samples_of_one_prompt_end_with_the_longest(tmp_path: Path) -> None:
    sampling = {"n": 2, "temperature": 0.9, "seed": 3}
    work = toy.workload(((5, 6, 7),), max_tokens=4, sampling=sampling)
    trace = asked(toy.record(replace(work), tmp_path / "g"), max_tokens=9)
    assert limits(trace) == [(4, None)]


LONG = Prompt(tuple(range(20)))


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        ({}, {"max_model_len": 20}, "Prompt 1 has 20 tokens, and max_model_len is 20"),
        ({"max_position_embeddings": 10}, {}, "the model was made for 10 positions"),
        ({"max_position_embeddings": 10}, {"max_model_len": 21}, None),
        ({"max_position_embeddings": 10, "rope_scaling": {"factor": 4.0}}, {}, None),
        ({"max_position_embeddings": 10, "rope_parameters": {"rope_theta": 1e4}}, {}, "made for 10 positions"),
        ({}, {}, None),
    ],
)
def test_a_prompt_that_is_too_long_is_refused_before_an_engine_starts(
    tmp_path: Path, config: dict[str, object], settings: dict[str, object], said: str | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    workload = Workload(str(tmp_path), (Prompt(None, "text"), LONG))
    if said is None:
        check_lengths(workload, settings)
        return
    with pytest.raises(WorkloadError, match=said) as raised:
        check_lengths(workload, settings)
    assert raised.value.exit_code == 2
