"""From planted faults to verdicts, over whole traces of the toy engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tracereplay.comparator import Policy, Rule, compare_traces
from tracereplay.comparator.numbers import tolerance
from tracereplay.comparator.numbers.results import Comparison, Finding
from tracereplay.comparator.numbers.tables import TableKey
from tracereplay.comparator.numbers.tally import Event
from tracereplay.engines import toy
from tracereplay.engines.toy import Flaw
from tracereplay.errors import DamagedTrace, UsageError
from tracereplay.trace import open_trace
from tracereplay.trace.manifest import write_manifest
from tracereplay.verdict import Coverage, Divergence, Metrics, Tolerance, Verdict

Judge = Callable[..., Verdict]

OPERATOR_FLAWS = [
    Flaw("model.norm", "scale"),
    Flaw("model.layers.1.self_attn.qkv_proj", "scale"),
    Flaw("model.layers.0.mlp.act_fn", "element"),
    Flaw("model.layers.1.self_attn.o_proj", "element"),
    Flaw("model.layers.1.input_layernorm", "eps"),
    Flaw("model.layers.1.mlp.down_proj", "nan"),
    Flaw("model.layers.0.self_attn.rotary_emb", "rotary"),
    Flaw("model.layers.1.self_attn.attn", "stale"),
    Flaw("model.embed_tokens", "wrong_row"),
    Flaw("logits_processor", "coarse"),
    Flaw("model.layers.1.mlp.gate_up_proj", "floor"),
    Flaw("sampler", "second"),
]
EDGE_FLAWS = [
    Flaw("model.layers.1.post_attention_layernorm", "scaled_edge", 1),
    Flaw("model.layers.0.post_attention_layernorm", "scaled_edge", 0),
    Flaw("model.norm", "scaled_edge", 1),
    Flaw("model.layers.0.self_attn.attn", "scaled_edge", 2),
    Flaw("sampler", "scaled_edge", 0),
    Flaw("model.layers.0.self_attn.rotary_emb", "positions"),
    Flaw("model.layers.0.input_layernorm", "swap"),
]
CLASSES = {"nan": "nonfinite", "floor": "biased"}


def name(flaw: Flaw) -> str:
    return f"{flaw.kind}-{flaw.site}"


def found(verdict: Verdict) -> Divergence:
    assert verdict.verdict == "diverged", verdict.reasons
    assert verdict.first_divergence is not None
    return verdict.first_divergence


def test_an_engine_matches_itself_bit_for_bit(judge: Judge) -> None:
    verdict = judge()
    assert (verdict.verdict, verdict.cause, verdict.exit_code, verdict.mode) == ("match", None, 0, "injected")
    assert {o.error_class for o in verdict.operators} == {"identical"}
    assert {e.error_class for e in verdict.edges} == {"identical"}
    assert verdict.coverage.compared_calls == verdict.coverage.golden_calls == 110
    assert verdict.coverage.not_compared == ()
    assert verdict.first_divergence is None
    assert verdict.first_visible is None
    assert verdict.settings_diff == ()
    assert (verdict.tokens.compared, verdict.tokens.differing, verdict.tokens.logprob_max) == (15, 0, 0.0)


@pytest.mark.parametrize("rounding", ["once", "twice"])
@pytest.mark.parametrize("flaw", OPERATOR_FLAWS, ids=name)
def test_a_flawed_operator_is_named(judge: Judge, flaw: Flaw, rounding: str) -> None:
    verdict = judge(flaw=flaw, rounding=rounding, passes=("injected",))
    first = found(verdict)
    assert (verdict.cause, first.kind, first.site, first.index) == ("operator", "operator", flaw.site, 0)
    assert first.error_class == CLASSES.get(flaw.kind, "exceeds")
    wrong = [o.site for o in verdict.operators if o.error_class not in ("identical", "rounding")]
    assert wrong == [flaw.site]
    assert {e.error_class for e in verdict.edges} == {"identical"}


@pytest.mark.parametrize("rounding", ["once", "twice"])
@pytest.mark.parametrize("flaw", EDGE_FLAWS, ids=name)
def test_a_fault_between_operators_is_named_where_it_arrives(judge: Judge, flaw: Flaw, rounding: str) -> None:
    verdict = judge(flaw=flaw, rounding=rounding, passes=("injected",))
    first = found(verdict)
    assert (verdict.cause, first.kind, first.site, first.index) == ("edge", "edge", flaw.site, flaw.index)
    wrong = {o.site for o in verdict.operators if o.error_class not in ("identical", "rounding", "incomparable")}
    # Golden has no values for the residual that a swapped layer gets; it cannot be fed.
    assert {site for site in wrong if not (flaw.kind == "swap" and site.endswith(".input_layernorm"))} == set()


def test_rows_whose_own_integers_differ_are_not_the_operators_fault(judge: Judge) -> None:
    verdict = judge(flaw=Flaw("model.layers.0.self_attn.rotary_emb", "positions"), passes=("injected",))
    assert {o.error_class for o in verdict.operators} == {"identical", "incomparable"}
    assert {o.operator for o in verdict.operators if o.error_class == "incomparable"} == {"RotaryEmbedding"}
    edges = {(e.site, e.input) for e in verdict.edges if e.error_class != "identical"}
    assert edges == {(f"model.layers.{layer}.self_attn.rotary_emb", 0) for layer in range(toy.LAYERS)}
    left = {(n.site.rsplit(".")[-1], n.reason) for n in verdict.coverage.not_compared}
    assert left == {("rotary_emb", "its integer input 0 differs, and integers are never fed")}


@pytest.mark.parametrize("options", [{"max_rows": 3}, {"max_rows": 1}])
def test_another_schedule_is_no_divergence(judge: Judge, options: dict[str, int]) -> None:
    verdict = judge(**options)
    assert verdict.verdict == "match"
    assert {o.error_class for o in verdict.operators} == {"identical"}
    assert any("batches differently" in note for note in verdict.notes)


def test_a_flaw_is_named_under_another_schedule(judge: Judge) -> None:
    flaw = Flaw("model.layers.0.self_attn.attn", "stale")
    first = found(judge(max_rows=2, rounding="twice", flaw=flaw, passes=("injected",)))
    assert (first.site, first.error_class) == ("model.layers.0.self_attn.attn", "exceeds")


@pytest.mark.parametrize("options", [{"rounding": "twice"}, {"tensor_parallel": 2}], ids=str)
def test_other_rounding_raises_no_alarm(judge: Judge, options: dict[str, object]) -> None:
    verdict = judge(Policy(logprob_max_abs=1.0, differing_tokens=24), **options)
    assert verdict.verdict == "match", verdict.reasons
    assert {o.error_class for o in verdict.operators} == {"identical", "rounding"}
    assert {e.error_class for e in verdict.edges} == {"identical"}


def test_rounding_is_the_cause_where_tokens_part_and_no_operator_does(judge: Judge) -> None:
    verdict = judge(Policy(logprob_max_abs=0.01), rounding="twice")
    assert (verdict.verdict, verdict.cause, verdict.first_divergence) == ("diverged", "rounding", None)
    assert "SiluAndMul" in verdict.reasons[0]
    assert verdict.exit_code == 1


@pytest.mark.parametrize("ranks", [(2, 1), (1, 2), (2, 2)])
def test_ranks_are_joined_before_they_are_compared(tmp_path: Path, ranks: tuple[int, int]) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden", tensor_parallel=ranks[0])
    candidate = toy.replay(golden, tmp_path / "candidate", tensor_parallel=ranks[1])
    verdict = compare_traces(golden, candidate, Policy(logprob_max_abs=1.0))
    assert verdict.verdict == "match"
    assert verdict.coverage.share == 1.0
    rounded = {o.operator for o in verdict.operators if o.error_class == "rounding"}
    assert rounded == (set() if ranks[0] == ranks[1] else {"RowParallelLinear"})


def test_a_flaw_on_two_ranks_is_named_from_one(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden")
    flaw = Flaw("model.layers.1.self_attn.qkv_proj", "scale")
    verdict = compare_traces(golden, toy.replay(golden, tmp_path / "c", tensor_parallel=2, flaw=flaw))
    assert found(verdict).site == flaw.site


def test_a_missing_rank_is_not_compared(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden", tensor_parallel=2)
    candidate = toy.replay(golden, tmp_path / "candidate", tensor_parallel=2)
    (candidate / "injected-rank1.seg").unlink()
    verdict = compare_traces(golden, candidate)
    classes = {o.operator: o.error_class for o in verdict.operators}
    assert classes["QKVParallelLinear"] == "incomparable"
    assert classes["RMSNorm"] == "identical"
    assert verdict.verdict == "inconclusive"
    assert "golden's calls could be compared" in verdict.reasons[0]


@pytest.mark.parametrize("rounding", ["once", "twice"])
@pytest.mark.parametrize("other", ["once", "twice"])
def test_two_samples_of_a_prompt_are_matched(tmp_path: Path, rounding: str, other: str) -> None:
    work = toy.workload(sampling={"n": 2, "temperature": 0.8, "seed": 3})
    golden = toy.record(work, tmp_path / "golden", rounding=rounding)  # type: ignore[arg-type]
    candidate = toy.replay(golden, tmp_path / "candidate", rounding=other)  # type: ignore[arg-type]
    verdict = compare_traces(golden, candidate, Policy(logprob_max_abs=1.0))
    assert verdict.verdict == "match", verdict.reasons
    assert verdict.coverage.share == 1.0
    assert verdict.tokens.compared == 0  # nothing greedy
    assert verdict.tokens.logprobs == 48
    reasons = {n.reason for n in verdict.coverage.not_compared}
    assert "drawn at random (temperature above 0)" in reasons
    assert ("computed once for requests with an equal beginning" in reasons) == (rounding < other)


def test_sampled_tokens_that_differ_do_not_diverge(tmp_path: Path) -> None:
    work = toy.workload(sampling={"temperature": 1.0, "seed": 1})
    golden = toy.record(work, tmp_path / "golden")
    verdict = compare_traces(golden, toy.replay(golden, tmp_path / "candidate"))
    assert verdict.verdict == "match"


def test_a_truncated_golden_is_inconclusive(golden: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.trace"
    shutil.copytree(golden, cut)
    candidate = toy.replay(golden, tmp_path / "candidate.trace")
    segment = cut / "record-rank0.seg"
    segment.write_bytes(segment.read_bytes()[: segment.stat().st_size // 2])
    verdict = compare_traces(cut, candidate)
    assert (verdict.verdict, verdict.exit_code) == ("inconclusive", 3)
    assert "incomplete" in verdict.reasons[0]
    assert 0 < verdict.coverage.golden_calls < 110


@pytest.fixture(scope="module")
def rounded_twice(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.replay(golden, tmp_path_factory.mktemp("twice") / "candidate", rounding="twice")


@pytest.mark.parametrize("segment", ["record", "rerun", "injected"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.97])
def test_any_truncation_is_inconclusive(
    golden: Path, rounded_twice: Path, tmp_path: Path, segment: str, share: float
) -> None:
    candidate = rounded_twice
    source = golden if segment == "record" else candidate
    shutil.copytree(source, tmp_path / "cut")
    path = tmp_path / "cut" / f"{segment}-rank0.seg"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    policy = Policy(logprob_max_abs=1.0)
    if segment == "record":
        assert compare_traces(tmp_path / "cut", candidate, policy).verdict == "inconclusive"
    else:
        assert compare_traces(golden, tmp_path / "cut", policy).verdict == "inconclusive"


def test_a_flaw_is_found_in_what_a_truncated_golden_holds(golden: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.trace"
    shutil.copytree(golden, cut)
    flaw = Flaw("model.embed_tokens", "scale")
    candidate = toy.replay(golden, tmp_path / "candidate.trace", flaw=flaw)
    segment = cut / "record-rank0.seg"
    segment.write_bytes(segment.read_bytes()[: segment.stat().st_size // 2])
    verdict = compare_traces(cut, candidate)
    assert found(verdict).site == flaw.site
    assert any("incomplete" in reason for reason in verdict.reasons)


def test_a_recording_cut_off_before_its_results_is_read_from_its_steps(golden: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.trace"
    shutil.copytree(golden, cut)
    manifest = json.loads((cut / "manifest.json").read_text())
    manifest |= {"state": "incomplete", "passes": {}}
    (cut / "manifest.json").write_bytes(write_manifest(manifest))
    verdict = compare_traces(cut, toy.replay(golden, tmp_path / "candidate.trace"))
    assert verdict.verdict == "inconclusive"
    assert verdict.coverage.share == 1.0


def test_other_weights_are_said_first(judge: Judge) -> None:
    verdict = judge(model="another")
    assert (verdict.verdict, verdict.cause) == ("inconclusive", "setting")
    assert "different weights" in verdict.reasons[0]
    assert verdict.settings_diff[0].name == "weights"
    assert verdict.first_divergence is None  # nobody is to blame
    assert any(o.error_class == "exceeds" for o in verdict.operators)


def test_a_candidate_that_does_not_repeat_itself_is_inconclusive(judge: Judge) -> None:
    passes = ("rerun", "injected", "injectedtwice")
    verdict = judge(Policy(logprob_max_abs=1.0, differing_tokens=99), noise=0.002, passes=passes)
    assert verdict.verdict == "inconclusive"
    assert "does not reproduce its own results" in verdict.reasons[0]
    assert judge(passes=passes).verdict == "match"


def test_strict_tolerates_no_difference(judge: Judge) -> None:
    strict = Policy().made_strict()
    assert judge(strict, passes=("injected",)).verdict == "match"
    verdict = judge(strict, rounding="twice", passes=("injected",))
    first = found(verdict)
    assert (verdict.cause, first.error_class, first.operator) == ("operator", "exceeds", "RMSNorm")
    assert (first.tolerance.a, first.tolerance.b, first.tolerance.source) == (0.0, 0.0, "strict")
    assert 0 < first.passing_tolerance.a < 2.0


def test_the_passing_tolerance_passes(golden: Path, tmp_path: Path) -> None:
    candidate = toy.replay(golden, tmp_path / "c", flaw=Flaw("model.norm", "scale"), passes=("injected",))
    passing = found(compare_traces(golden, candidate)).passing_tolerance
    rule = Rule(site="model.norm", a=passing.a, b=passing.b)
    verdict = compare_traces(golden, candidate, Policy(rules=(rule,)))
    assert next(o for o in verdict.operators if o.site == "model.norm").error_class in ("rounding", "biased")
    tighter = Rule(site="model.norm", a=passing.a * 0.985, b=passing.b * 0.985)
    assert found(compare_traces(golden, candidate, Policy(rules=(tighter,)))).error_class == "exceeds"


def test_what_single_elements_may_be_off_by_is_their_operators_roles(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = "model.layers.0.mlp.act_fn"
    candidate = toy.replay(golden, tmp_path / "c", flaw=Flaw(site, "element"), passes=("injected",))
    before = found(compare_traces(golden, candidate))
    assert (before.site, before.error_class, before.tolerance.source) == (site, "exceeds", "default")
    ratios = {}
    for role in ("experts", "gated"):
        monkeypatch.setattr(tolerance, "PEAKS", {(role, before.tolerance.dtype): 4.0})
        first = found(compare_traces(golden, candidate))
        assert ("single elements up to 4 times" in first.tolerance.source) == (role == "gated")
        ratios[role] = first.passing_tolerance.a
    assert ratios["experts"] == before.passing_tolerance.a
    assert ratios["gated"] < 0.9 * ratios["experts"]  # what is left is the error of the row together


def test_a_rule_can_ignore_a_site(judge: Judge) -> None:
    rule = Rule(site="model.norm", ignore=True, because="known")
    policy = Policy(rules=(rule,), logprob_max_abs=9.0, differing_tokens=99)
    verdict = judge(policy, flaw=Flaw("model.norm", "scale"))
    assert verdict.verdict == "match"
    assert [(n.site, n.reason) for n in verdict.coverage.not_compared] == [
        ("model.norm", "ignored by the policy: rule for site model.norm (known)")
    ]


def test_two_recordings_are_compared_up_to_where_their_tokens_part(tmp_path: Path) -> None:
    work = toy.workload(max_tokens=24)
    golden = toy.record(work, tmp_path / "golden")
    other = toy.record(work, tmp_path / "other", flaw=Flaw("model.layers.0.mlp.act_fn", "element"))
    verdict = compare_traces(golden, other)
    assert (verdict.mode, verdict.verdict) == ("compare", "diverged")
    assert verdict.tokens.first_divergence is not None
    assert "after the request's first differing token" in {n.reason for n in verdict.coverage.not_compared}
    first = found(verdict)
    assert (first.site, verdict.cause) == ("model.layers.0.mlp.act_fn", "operator")  # all before is identical


def test_two_equal_recordings_match(tmp_path: Path) -> None:
    work = toy.workload()
    golden, other = (toy.record(work, tmp_path / n, max_rows=m) for n, m in (("a", None), ("b", 4)))
    verdict = compare_traces(golden, other)
    assert (verdict.mode, verdict.verdict, verdict.coverage.share) == ("compare", "match", 1.0)


def test_an_inherited_difference_is_not_blamed_in_a_compare(tmp_path: Path) -> None:
    work = toy.workload(max_tokens=4)
    golden = toy.record(work, tmp_path / "golden")
    flaw = Flaw("model.norm", "scale")
    other = toy.record(work, tmp_path / "other", rounding="twice", flaw=flaw)
    verdict = compare_traces(golden, other, Policy(logprob_max_abs=0.0))
    assert (verdict.verdict, verdict.cause) == ("diverged", None)
    assert "Replay the golden trace" in verdict.reasons[0]


def test_a_rerun_alone_shows_where_it_parts(judge: Judge) -> None:
    verdict = judge(passes=("rerun",), flaw=Flaw("model.layers.0.mlp.act_fn", "element"))
    assert (verdict.mode, verdict.cause) == ("rerun", "operator")
    assert found(verdict).site == "model.layers.0.mlp.act_fn"


def test_the_reruns_first_visible_difference_is_kept(judge: Judge) -> None:
    verdict = judge(rounding="twice", flaw=Flaw("model.layers.1.mlp.down_proj", "nan"))
    assert verdict.first_visible is not None
    assert verdict.first_visible.site != "model.layers.1.mlp.down_proj"  # it saw what had piled up before


def test_what_is_not_observed_is_said(golden: Path, tmp_path: Path) -> None:
    # The rerun of a flawed engine beside the injected pass of a good one: nothing recorded explains it.
    good = toy.replay(golden, tmp_path / "good")
    bad = toy.replay(golden, tmp_path / "bad", flaw=Flaw("model.layers.0.mlp.act_fn", "element"))
    shutil.copy(bad / "rerun-rank0.seg", good / "rerun-rank0.seg")
    verdict = compare_traces(golden, good)
    assert (verdict.verdict, verdict.cause) == ("diverged", "unobserved")
    assert "model.layers.0.mlp.act_fn" in verdict.reasons[0]


def test_an_output_that_the_compiler_removed_is_no_other_structure(
    golden: Path, rounded_twice: Path, tmp_path: Path
) -> None:
    from tests_support import without_output

    candidate = rounded_twice
    policy = Policy(logprob_max_abs=0.01)
    verdict = compare_traces(golden, without_output(candidate, tmp_path / "one", "model.norm", {1}), policy)
    assert (verdict.verdict, verdict.cause, verdict.coverage.share) == ("diverged", "rounding", 1.0)
    left = [(n.site, n.reason) for n in verdict.coverage.not_compared]
    assert left == [("model.norm", "the candidate's call has no output 1")]
    verdict = compare_traces(golden, without_output(candidate, tmp_path / "all", "model.norm", {0, 1}), policy)
    assert (verdict.verdict, verdict.cause) == ("diverged", "structure")
    assert "the first being model.norm" in verdict.reasons[0]


def test_an_engine_that_truncates_rounds_otherwise(judge: Judge, golden: Path, tmp_path: Path) -> None:
    candidate = toy.replay(golden, tmp_path / "candidate", rounding="truncate")
    verdict = compare_traces(golden, candidate, Policy(logprob_max_abs=0.01))
    assert (verdict.verdict, verdict.cause, verdict.first_divergence) == ("diverged", "rounding", None)
    assert "The candidate seems to truncate where the other rounds to nearest: RMSNorm" in verdict.reasons[0]
    assert "Golden" not in verdict.reasons[0]
    act = next(o for o in verdict.operators if o.operator == "SiluAndMul")
    assert act.error_class == "rounding"
    assert act.metrics.bias_ulp == pytest.approx(-0.5, abs=0.03)
    other = toy.record(toy.workload(), tmp_path / "other", rounding="truncate")
    verdict = judge(Policy(logprob_max_abs=0.01), of=other)
    assert " Golden seems to truncate" in verdict.reasons[0]
    first = found(compare_traces(golden, candidate, Policy(bias_sign_max_ulp=0.1)))
    assert (first.error_class, first.operator) == ("biased", "RMSNorm")


@pytest.mark.parametrize("kind", ["truncate", "slight"])
@pytest.mark.parametrize("rounding", ["once", "twice"])
def test_a_systematic_fault_below_tolerance_is_biased(judge: Judge, kind: str, rounding: str) -> None:
    # one operator that truncates, or is 0.2 % off, between engines that do not: with or without honest differences
    verdict = judge(flaw=Flaw("model.layers.1.mlp.act_fn", kind), rounding=rounding)
    first = found(verdict)
    assert (first.site, first.error_class) == ("model.layers.1.mlp.act_fn", "biased")
    assert {o.site for o in verdict.operators if o.error_class == "biased"} == {first.site}
    assert first.metrics.allowance_ratio < 1
    assert first.passing_bias is not None
    allowed = judge(Policy(bias_max_ulp=first.passing_bias), flaw=Flaw(first.site, kind), rounding=rounding)
    assert {o.error_class for o in allowed.operators} <= {"identical", "rounding"}


@pytest.mark.parametrize("kind", ["rotary_emb", "attn"])
@pytest.mark.parametrize("rounding", ["once", "twice"])
def test_a_small_models_class_that_truncates_as_a_whole_is_no_fault(
    judge: Judge, kind: str, rounding: str
) -> None:
    # vLLM 0.8.5 truncates so: only rotary embeddings of a Gemma could show it, and only attention of a GPT-NeoX
    sites = [f"model.layers.{layer}.self_attn.{kind}" for layer in range(toy.LAYERS)]
    verdict = judge(flaw=[Flaw(site, "truncate") for site in sites], rounding=rounding, passes=("injected",))
    assert verdict.first_divergence is None
    found = {o.site: o.metrics.siblings for o in verdict.operators if o.site in sites}
    told = {(s.count, s.signature, s.apart) for s in found.values() if s is not None}
    assert (set(found), told) == (set(sites), {(toy.LAYERS, "truncation", False)})


def test_a_fault_that_takes_away_an_engines_lean_is_found(judge: Judge, tmp_path: Path) -> None:
    # golden truncates, so that all norms lean; in one the candidate's values are too small, and it leans less
    golden = toy.record(toy.workload(), tmp_path / "truncating", rounding="truncate")
    assert judge(of=golden, passes=("injected",)).first_divergence is None
    flaw = Flaw("model.layers.1.input_layernorm", "short")
    verdict = judge(of=golden, flaw=flaw, passes=("injected",))
    first = found(verdict)
    assert (first.site, first.error_class, verdict.cause) == (flaw.site, "biased", "operator")
    assert [o.site for o in verdict.operators if o.error_class == "biased"] == [flaw.site]
    operators = {o.site: o.metrics for o in verdict.operators}
    norms = [
        m for site, m in operators.items() if site.endswith("norm") and site != "model.layers.0.input_layernorm"
    ]
    own = operators[flaw.site]
    assert abs(own.bias_ulp) < min(m.bias_ulp for m in norms if m is not own)  # each figure is within tolerance
    assert own.siblings is not None
    assert (own.siblings.count, own.siblings.measure, own.siblings.apart) == (4, "bias_ulp", True)
    assert "It stands apart from its siblings (operators of the same class" in verdict.reasons[0]
    assert first.passing_bias is not None
    policy = Policy(rules=(Rule(flaw.site, max_ulp=first.passing_bias),))
    assert judge(policy, of=golden, flaw=flaw, passes=("injected",)).first_divergence is None


def test_a_factor_in_all_operators_of_a_class_is_a_fault(judge: Judge) -> None:
    sites = [f"model.layers.{layer}.mlp.act_fn" for layer in range(toy.LAYERS)]
    verdict = judge(flaw=[Flaw(site, "slight") for site in sites], passes=("injected",))
    assert [o.site for o in verdict.operators if o.error_class == "biased"] == sites
    assert "It grows with the mantissa, as a wrong factor's does" in verdict.reasons[0]


def test_a_rule_lets_one_operator_lean(golden: Path, tmp_path: Path) -> None:
    site = "model.layers.1.mlp.act_fn"
    candidate = toy.replay(golden, tmp_path / "candidate", flaw=Flaw(site, "truncate"))
    assert compare_traces(golden, candidate, Policy(rules=(Rule(site, max_ulp=0.6),))).first_divergence is None
    elsewhere = Policy(rules=(Rule("model.norm", max_ulp=0.6),))
    assert found(compare_traces(golden, candidate, elsewhere)).site == site


def test_a_lean_is_named_only_where_nothing_is_worse(golden: Path, tmp_path: Path) -> None:
    # One engine leans from the first layers on; that must not hide a fault in the last.
    lean = toy.replay(golden, tmp_path / "lean", flaw=Flaw("model.layers.0.mlp.act_fn", "floor"))
    verdict = compare_traces(golden, lean)
    assert found(verdict).error_class == "biased"
    assert "bias is -0." in verdict.reasons[0]
    allowed = compare_traces(golden, lean, Policy(bias_max_ulp=0.6, logprob_max_abs=1.0))
    assert allowed.verdict == "match"
    early, late, tolerance = Event(0, 0, Metrics()), Event(9, 0, Metrics()), Tolerance(1, 1)
    leaning = Finding(TableKey("a", "out", 0), "", "", "biased", 1, 1, Metrics(), tolerance, early)
    worse = Finding(TableKey("b", "out", 0), "", "", "exceeds", 1, 1, Metrics(), tolerance, late, late)
    assert Comparison((leaning, worse), Coverage(), ()).first() is worse
    assert Comparison((leaning,), Coverage(), ()).first() is leaning


def test_a_replay_of_another_golden_trace_proves_nothing(golden: Path, tmp_path: Path) -> None:
    other = toy.record(toy.workload(max_tokens=5), tmp_path / "other", rounding="twice")
    verdict = compare_traces(golden, toy.replay(other, tmp_path / "candidate", rounding="twice"))
    assert verdict.verdict == "inconclusive"
    assert "replay of another golden trace" in verdict.reasons[0]


def test_a_trace_without_a_workload_is_damaged(golden: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(golden, broken)
    manifest = json.loads((broken / "manifest.json").read_text())
    for run in ({}, {"workload": []}, {"workload": {"model": "x", "prompts": [3], "settings": {}}}):
        (broken / "manifest.json").write_bytes(write_manifest(manifest | {"run": run}))
        with pytest.raises(DamagedTrace, match="workload"):
            compare_traces(broken, golden)


def test_a_semantic_setting_is_the_cause(tmp_path: Path) -> None:
    work = toy.workload(sampling={"temperature": 0.5, "seed": 1})
    golden = toy.record(work, tmp_path / "golden")
    candidate = toy.replay(golden, tmp_path / "candidate", settings={"logprobs_mode": "processed_logprobs"})
    verdict = compare_traces(golden, candidate)
    assert (verdict.verdict, verdict.cause) == ("diverged", "setting")
    assert "logprobs_mode" in verdict.reasons[0]
    assert found(verdict).site == "sampler"
    assert [(d.name, d.effect) for d in verdict.settings_diff] == [("logprobs_mode", "semantic")]


def test_dtypes_may_differ(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(dtype="float32"), tmp_path / "golden")
    candidate = toy.replay(golden, tmp_path / "candidate", settings={"dtype": "float16"})
    verdict = compare_traces(golden, candidate, Policy(logprob_max_abs=9.0))
    tolerances = {o.tolerance.dtype for o in verdict.operators if o.tolerance and o.operator != "Sampler"}
    assert tolerances == {"float16"}
    assert [d.name for d in verdict.settings_diff] == ["dtype"]


def given(tmp_path: Path, before: dict[str, Any], after: dict[str, Any], *flaws: Flaw, **options: Any) -> Verdict:
    """Golden recorded with the settings ``before``, its candidate replayed with ``after`` and with flaws."""
    golden = toy.record(toy.workload(max_tokens=4, **before), tmp_path / "golden")
    return compare_traces(golden, toy.replay(golden, tmp_path / "c", settings=after, flaw=flaws, **options))


ATTENTION = Flaw("model.layers.0.self_attn.attn", "stale")
QKV = Flaw("model.layers.1.self_attn.qkv_proj", "scale")
NORM = Flaw("model.norm", "scale")


def test_another_dtype_is_the_cause_whatever_it_shows_in(tmp_path: Path) -> None:
    verdict = given(tmp_path, {"dtype": "float32"}, {"dtype": "bfloat16", "enforce_eager": False}, ATTENTION)
    assert (verdict.verdict, verdict.cause) == ("diverged", "setting")
    assert found(verdict).site == ATTENTION.site  # where it shows is not lost
    assert verdict.reasons[0] == (
        "A setting differs: dtype is 'float32' in golden and 'bfloat16' in the candidate. That changes what "
        "Attention at model.layers.0.self_attn.attn computes, which exceeds the tolerance. Replay with "
        "--set dtype=float32 to find out whether anything else differs."
    )


def test_another_dtype_is_the_cause_where_only_tokens_or_logprobs_part(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(dtype="float32"), tmp_path / "golden")
    candidate = toy.replay(golden, tmp_path / "candidate", settings={"dtype": "float16"})
    verdict = compare_traces(golden, candidate, Policy(logprob_max_abs=0.0))
    assert (verdict.verdict, verdict.cause, verdict.first_divergence) == ("diverged", "setting", None)
    assert "dtype is 'float32' in golden" in verdict.reasons[0]


@pytest.mark.parametrize("passes", [("record",), ("rerun",)])
def test_settings_are_the_cause_without_an_injected_pass_too(tmp_path: Path, passes: tuple[str, ...]) -> None:
    golden = toy.record(toy.workload(dtype="float32"), tmp_path / "golden")
    if passes == ("record",):
        other = toy.record(toy.workload(dtype="bfloat16"), tmp_path / "other", flaw=NORM)
    else:
        other = toy.replay(golden, tmp_path / "other", settings={"dtype": "bfloat16"}, flaw=NORM, passes=passes)
    verdict = compare_traces(golden, other)
    assert (verdict.verdict, verdict.cause) == ("diverged", "setting")
    assert "dtype is 'float32' in golden" in verdict.reasons[0]


@pytest.mark.parametrize(
    "innocent",
    [
        {"attention_backend": "FLEX", "enforce_eager": False, "compilation_mode": "DYNAMO_TRACE_ONCE"},
        {"logprobs_mode": "processed_logprobs", "max_num_seqs": 3, "unheard_of": 1},
        {"kv_cache_dtype": "bfloat16"},  # golden's "auto" means it
    ],
)
@pytest.mark.parametrize("flaw", [ATTENTION, NORM, Flaw("sampler", "second"), EDGE_FLAWS[0]], ids=name)
def test_an_innocent_setting_swallows_no_fault(tmp_path: Path, innocent: dict[str, Any], flaw: Flaw) -> None:
    before = {"attention_backend": "SDPA", "enforce_eager": True, "kv_cache_dtype": "auto"}
    verdict = given(tmp_path, before, innocent, flaw)
    assert (verdict.cause, found(verdict).site) == ("edge" if flaw in EDGE_FLAWS else "operator", flaw.site)


def test_a_setting_is_blamed_only_where_the_operator_that_it_touches_differs(tmp_path: Path) -> None:
    quantized = {"quantization": "fp8"}
    (norm, linear, edge, both) = (tmp_path / n for n in ("norm", "linear", "edge", "both"))
    assert given(norm, {}, quantized, NORM).cause == "operator"
    assert given(linear, {}, quantized, QKV).cause == "setting"
    assert given(edge, {}, quantized, Flaw("model.layers.0.self_attn.qkv_proj", "scaled_edge", 0)).cause == "edge"
    verdict = given(both, {}, quantized, QKV, NORM)
    assert (verdict.cause, found(verdict).site) == ("setting", QKV.site)
    assert "quantization is not set in golden and 'fp8' in the candidate" in verdict.reasons[0]
    assert verdict.reasons[1] == (
        "No setting explains RMSNorm at model.norm, which also exceeds the tolerance on golden inputs."
    )


def test_weights_that_are_not_known_explain_nothing(golden: Path, tmp_path: Path) -> None:
    candidate = toy.replay(golden, tmp_path / "candidate", flaw=NORM)
    manifest = json.loads((candidate / "manifest.json").read_text())
    manifest["run"]["workload"]["weights"] = None  # a checkpoint without safetensors
    (candidate / "manifest.json").write_bytes(write_manifest(manifest))
    verdict = compare_traces(golden, candidate)
    assert (verdict.cause, [(d.name, d.effect) for d in verdict.settings_diff]) == (
        "operator",
        [("weights", "unknown")],
    )


def test_an_attention_row_without_fed_context_is_not_compared(golden: Path, tmp_path: Path) -> None:
    # Golden lost its first step, as if a prefix cache had held it: later rows attend to unfed keys.
    from tests_support import without_first_step

    part = without_first_step(golden, tmp_path / "part.trace")
    flaw = Flaw("model.layers.0.self_attn.attn", "stale")
    verdict = compare_traces(part, toy.replay(part, tmp_path / "candidate.trace", flaw=flaw))
    left = {(n.site, n.reason.split(":")[0]) for n in verdict.coverage.not_compared}
    assert ("model.layers.0.self_attn.attn", "unfed context") in left
    found = {o.error_class for o in verdict.operators if o.operator == "Attention"}
    assert found
    assert "exceeds" not in found


def test_a_replay_cannot_be_golden(judge: Judge, golden: Path, tmp_path: Path) -> None:
    candidate = toy.replay(golden, tmp_path / "candidate")
    with pytest.raises(UsageError, match="not a recording"):
        compare_traces(candidate, golden)


def test_open_traces_stay_open(golden: Path) -> None:
    trace = open_trace(golden)
    assert compare_traces(trace, trace).verdict == "match"
    assert trace.steps("record")[0].calls[0].inputs[0].load()
    trace.close()


def test_a_verdict_survives_json(judge: Judge) -> None:
    verdict = judge(flaw=Flaw("model.layers.1.mlp.down_proj", "nan"), rounding="twice")
    text = json.dumps(verdict.as_dict(), allow_nan=False)
    again = Verdict.from_dict(json.loads(text))
    assert again.as_dict() == verdict.as_dict()
    assert again.exit_code == verdict.exit_code


# -- what is known before any number --------------------------------------------------------------------------

LAYER = "model.layers.1."
INTO_NORM = Flaw("model.norm", "scaled_edge", 1)


def test_an_edge_behind_operators_that_golden_alone_runs_is_another_structure(
    golden: Path, tmp_path: Path
) -> None:
    from tests_support import without_sites

    candidate = toy.replay(golden, tmp_path / "candidate", flaw=INTO_NORM)
    assert compare_traces(golden, candidate).cause == "edge"
    fewer = without_sites(candidate, tmp_path / "fewer", "injected", LAYER)
    verdict = compare_traces(golden, fewer)
    assert (verdict.cause, found(verdict).site) == ("structure", "model.norm")
    assert verdict.reasons[0] == (
        "The two do not run the same operators: right before input 1 of model.norm, where what arrives exceeds "
        "the tolerance, only golden runs 9 operators up to model.layers.1.mlp.down_proj."
    )


def test_an_edge_behind_operators_that_the_candidate_alone_runs_is_too(golden: Path, tmp_path: Path) -> None:
    from tests_support import without_sites

    fewer = without_sites(golden, tmp_path / "fewer", "record", LAYER)
    verdict = compare_traces(fewer, toy.replay(fewer, tmp_path / "candidate", flaw=INTO_NORM))
    assert verdict.cause == "structure"
    assert "only the candidate runs 9 operators up to model.layers.1.mlp.down_proj." in verdict.reasons[0]


def test_sites_that_are_not_shared_elsewhere_excuse_no_edge_and_no_operator(golden: Path, tmp_path: Path) -> None:
    from tests_support import without_sites

    for flaw in (EDGE_FLAWS[1], NORM):
        candidate = toy.replay(golden, tmp_path / f"{flaw.kind}", flaw=flaw)
        fewer = without_sites(candidate, tmp_path / f"{flaw.kind}-fewer", "injected", LAYER)
        verdict = compare_traces(golden, fewer)
        assert (verdict.cause, found(verdict).site) == ("edge" if flaw in EDGE_FLAWS else "operator", flaw.site)


def test_what_an_operator_was_built_with_is_said_where_it_differs(golden: Path, tmp_path: Path) -> None:
    from tests_support import without_sites

    mine = without_sites(golden, tmp_path / "mine", "record", "nothing", {"model.norm": {"eps": 1e-5, "size": 64}})
    candidate = toy.replay(mine, tmp_path / "candidate", flaw=NORM)
    theirs = without_sites(candidate, tmp_path / "theirs", "injected", "nothing", {"model.norm": {"eps": 1e-6}})
    verdict = compare_traces(mine, theirs)
    assert "It was built differently: eps is 1e-05 in golden and 1e-06 in the candidate." in verdict.reasons[0]
    assert "built differently" not in compare_traces(mine, candidate).reasons[0]


def recorded(path: Path, *prompts: tuple[int, ...], texts: tuple[str, ...] = (), **sampling: Any) -> Path:
    work = toy.workload(prompts, max_tokens=3, sampling=sampling)
    named = [replace(p, text=text) for p, text in zip(work.prompts, texts, strict=False)]
    return toy.record(replace(work, prompts=tuple(named) or work.prompts), path)


def test_other_prompts_are_said_and_are_no_match(tmp_path: Path) -> None:
    golden = recorded(tmp_path / "golden", (5, 6, 7, 8), (9, 10, 11), (20, 21), texts=("a", "b", "c"))
    others = {
        "part": ((5, 6, 7, 8), (9, 10, 12), (20, 21)),
        "order": ((20, 21), (5, 6, 7, 8), (9, 10, 11)),
        "few": ((5, 6, 7, 8), (9, 10, 11)),
    }
    words = {
        "part": "1 of 3 prompts differ, the first being request 1 from position 2 on.",
        "order": "the same ones in another order.",
        "few": "1 of 3 prompts differ, and the first that the candidate lacks is request 2.",
    }
    for name_, prompts in others.items():
        verdict = compare_traces(golden, recorded(tmp_path / name_, *prompts), Policy(min_coverage=0.0))
        assert (verdict.verdict, verdict.cause) == ("inconclusive", None), name_
        assert verdict.reasons[0].startswith(f"The two ran different prompts: {words[name_]}"), verdict.reasons
    tokenized = recorded(tmp_path / "tokenized", (5, 6, 7, 8), (9, 10, 12), (20, 21), texts=("a", "b", "c"))
    assert "was tokenized differently" in compare_traces(golden, tokenized).reasons[0]


def test_other_sampling_parameters_are_a_setting_and_no_fault_of_the_sampler(tmp_path: Path) -> None:
    golden = recorded(tmp_path / "golden", (5, 6, 7, 8), (9, 10, 11), temperature=0.0)
    hot = recorded(tmp_path / "hot", (5, 6, 7, 8), (9, 10, 11), temperature=5.0, seed=3, top_p=1.0)
    verdict = compare_traces(golden, hot)
    assert (verdict.verdict, verdict.cause, found(verdict).site) == ("diverged", "setting", "sampler")
    assert [d.name for d in verdict.settings_diff] == ["sampling.seed", "sampling.temperature"]
    assert "sampling.temperature is 0.0 in golden and 5.0 in the candidate" in verdict.reasons[0]
    same = recorded(tmp_path / "same", (5, 6, 7, 8), (9, 10, 11), temperature=0.0, seed=3, top_k=-1, top_p=1.0)
    assert compare_traces(golden, same).settings_diff == ()
