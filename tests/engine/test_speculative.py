"""Speculative decoding under real vLLM V1: rejected rows and forced tokens; drafts looked up, or from a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_support import EAGER, FAULTS, TINY, Engines, Running, find_engine, random_model, token_ids

from tracereplay.comparator import compare_traces
from tracereplay.errors import Unsupported
from tracereplay.event import rejected
from tracereplay.launch import Configured
from tracereplay.launch.process import EngineProcess
from tracereplay.trace import Trace
from tracereplay.verdict import Verdict
from tracereplay.workload import Prompt

pytestmark = pytest.mark.engine

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
GREEDY = {"max_tokens": 16, "temperature": 0.0, "logprobs": 0, "ignore_eos": True}


def text(words: str, **sampling: Any) -> Prompt:
    return Prompt(tuple(words.encode()), None, {**GREEDY, **sampling})


PROMPTS = (
    text("the same words and the same words and "),
    text("def f(x):\n    return x\ndef g(x):\n", max_tokens=9),
    text("once upon a time there was", prompt_logprobs=1),
    Prompt(token_ids(40, 1), None, GREEDY),
)


@pytest.fixture
def faulty(fault_file: Path, single_process: Mapping[str, str]) -> Mapping[str, str]:
    return {**single_process, "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file)}


@pytest.fixture
def plain(engines: Engines, faulty: Mapping[str, str]) -> Running:
    return engines.start("v1", env=faulty)


@pytest.fixture
def ngram(engines: Engines, faulty: Mapping[str, str]) -> Running:
    return engines.start("v1", env=faulty, speculative_config=NGRAM)


@pytest.fixture(scope="module")
def goldens() -> dict[str, Trace]:
    """What earlier tests of this module have recorded."""
    return {}


def rows(trace: Trace, name: str = "record") -> list[tuple[int, int, int]]:
    return [tuple(row) for step in trace.steps(name) for row in step.rows.tolist()]


def tokens(trace: Trace) -> list[Any]:
    return [(r["token_ids"], r["finish_reason"]) for r in trace.results["record"]["requests"]]


def assert_matches(verdict: Verdict, reasons: set[str]) -> None:
    assert verdict.verdict == "match", verdict.reasons
    assert verdict.coverage.share == 1.0
    assert {left.reason for left in verdict.coverage.not_compared} == reasons
    assert {o.error_class for o in verdict.operators} <= {"identical", "rounding"}
    assert {e.error_class for e in verdict.edges} <= {"identical", "rounding"}
    assert verdict.tokens.compared == 16 * 3 + 9
    assert verdict.tokens.differing == 0
    for side in (verdict.coverage.census.golden, verdict.coverage.census.candidate):
        assert side is not None
        assert side.unobserved == ()


def test_a_plain_recording_serves_as_golden(plain: Running, goldens: dict[str, Trace]) -> None:
    goldens["plain"] = plain.record(*PROMPTS)
    assert not any(rejected(step.rows).any() for step in goldens["plain"].steps("record"))


def test_drafts_are_accepted_and_rejected_and_recording_changes_no_bit(
    ngram: Running, goldens: dict[str, Trace]
) -> None:
    before = ngram.generate(*PROMPTS)
    golden = goldens["ngram"] = ngram.record(*PROMPTS, settings=ngram.settings)
    for key in ("token_ids", "logprobs", "prompt_logprobs"):
        assert [r[key] for r in golden.results["record"]["requests"]] == [r[key] for r in before]
    assert tokens(golden) == tokens(goldens["plain"])
    assert golden.results["record"]["ranks"][0]["errors"] == {}
    assert any(position < 0 for _, _, position in rows(golden))
    steps = list(golden.steps("record"))
    several = [step for step in steps if len(step.sampled) > len({s.key[:2] for s in step.sampled})]
    assert several  # in which a draft was accepted
    kept = [row for row in rows(golden) if row[2] >= 0]
    # Each token of the sequences is computed once, save the last of each; the rest was thrown away.
    ends = [len(p.token_ids or ()) + p.sampling["max_tokens"] - 1 for p in PROMPTS]
    assert sorted(kept) == [(request, 0, p) for request, end in enumerate(ends) for p in range(end)]
    assert golden.run.engine_facts("settings")["speculative_config"] == NGRAM


def test_a_replay_with_the_same_drafts_matches(ngram: Running, goldens: dict[str, Trace]) -> None:
    verdict = ngram.verdict(goldens["ngram"])
    assert_matches(verdict, {"drafts that golden rejected", "drafts that the candidate rejected"})
    assert verdict.settings_diff == ()


def test_a_plain_golden_is_replayed_with_drafts(ngram: Running, goldens: dict[str, Trace]) -> None:
    candidate = ngram.replay(goldens["plain"])
    assert any(position < 0 for _, _, position in rows(candidate, "rerun"))
    assert len(list(candidate.steps("rerun"))) < len(list(goldens["plain"].steps("record")))  # some are accepted
    verdict = compare_traces(goldens["plain"], candidate)
    assert_matches(verdict, {"drafts that the candidate rejected"})
    effects = {d.name: d.effect for d in verdict.settings_diff}
    assert effects.pop("speculative_config") == "numeric"
    assert set(effects.values()) <= {"none"}


@pytest.mark.parametrize("golden", ["ngram", "plain"])
@pytest.mark.parametrize(
    ("fault", "site"),
    [("scale", "model.layers.1.input_layernorm"), ("soft_attention", "model.layers.3.self_attn.attn")],
)
def test_a_fault_is_named_at_its_place_in_steps_that_verify(
    ngram: Running, goldens: dict[str, Trace], plant: Callable[[str], None], golden: str, fault: str, site: str
) -> None:
    plant(fault)
    verdict = ngram.verdict(goldens[golden])
    assert verdict.verdict == "diverged"
    assert verdict.first_divergence is not None
    assert (verdict.first_divergence.kind, verdict.first_divergence.site) == ("operator", site)
    assert {o.site for o in verdict.operators if o.error_class != "identical"} == {site}


def test_a_golden_with_drafts_is_replayed_without(plain: Running, goldens: dict[str, Trace]) -> None:
    assert_matches(plain.verdict(goldens["ngram"]), {"drafts that golden rejected"})


@pytest.mark.long
def test_a_draft_model_proposes_and_is_said_not_to_be_recorded(
    engines: Engines, single_process: Mapping[str, str], goldens: dict[str, Trace], tmp_path: Path
) -> None:
    draft = tmp_path / "draft"
    sizes = ["--layers", "2", "--hidden", "128", "--heads", "4", "--kv-heads", "2", "--vocab", "320"]
    random_model(draft, "llama", *sizes)
    speculative = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 2}
    running = engines.start("v1", TINY, single_process, speculative_config=speculative)
    golden = running.record(*PROMPTS, settings=running.settings)
    assert tokens(golden) == tokens(goldens["plain"])
    said = golden.run.engine_facts("settings")["speculative_config"]
    assert len(said.pop("weights")) == 32
    assert said == {"method": "draft_model", "architecture": "LlamaForCausalLM", "num_speculative_tokens": 2}
    assert sum(position < 0 for _, _, position in rows(golden)) > 50
    verdict = running.verdict(goldens["plain"])
    assert_matches(verdict, {"drafts that the candidate rejected"})
    assert any("draft model (LlamaForCausalLM) is not recorded" in note for note in verdict.notes)


@pytest.mark.parametrize(
    ("engine", "settings", "said"),
    [
        ("v1", {"method": "suffix"}, "by the method suffix cannot be recorded yet"),
        ("v1", {"model": "nowhere", "method": "eagle"}, "by the method eagle cannot be recorded yet"),
        ("v1", {**NGRAM, "rejection_sample_method": "synthetic"}, "with synthetic acceptance"),
        ("v0", NGRAM, "under vLLM's V1 engine only"),
    ],
)
@pytest.mark.long
def test_other_ways_to_speculate_are_refused_in_a_sentence_before_the_model_is_loaded(
    engine: str, settings: dict[str, object], said: str
) -> None:
    found = find_engine(engine)
    launch = Configured(engine, found.python, found.env, found.settings)
    with pytest.raises(Unsupported, match=said) as raised:
        EngineProcess(launch, model=Path("nowhere"), settings={**EAGER, "speculative_config": settings}).close()
    assert "\n" not in str(raised.value)
