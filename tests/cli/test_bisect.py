"""Bisecting from end to end, with the toy engine as the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import make_model, moved, write
from program import Program

from tracereplay.comparator.tokens.generation import Sampling
from tracereplay.comparator.tokens.rollout import sampled_tokens
from tracereplay.trace import Trace
from tracereplay.trace.manifest import write_manifest

Bisect = Callable[..., dict[str, Any]]

FIRST, SECOND = "model.layers.0.self_attn.o_proj", "model.layers.1.mlp.act_fn"
TWO = f"flaw={FIRST}:scale,{SECOND}:coarse"


@pytest.fixture(scope="session")
def recorded_long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one recording lies that `long_golden` copies."""
    return tmp_path_factory.mktemp("recorded") / "long.trace"


@pytest.fixture
def long_golden(tracereplay: Program, model: Path, recorded_long: Path, tmp_path: Path) -> Path:
    """Four prompts of eight tokens."""
    if not recorded_long.exists():
        lines = [json.dumps({"prompt_token_ids": list(range(i, i + 5)), "max_tokens": 8}) for i in (5, 30, 60, 90)]
        prompts = write(tmp_path / "long.jsonl", "\n".join(lines))
        words = ("--model", model, "--prompts", prompts, "-o", recorded_long)
        assert tracereplay("record", "--engine", "toy", *words).code == 0
    return moved(recorded_long, tmp_path / "long.trace", model)


@pytest.fixture
def bisect(tracereplay: Program, long_golden: Path, tmp_path: Path) -> Bisect:
    def run(*words: object, code: int = 1, by: str = "operators") -> dict[str, Any]:
        file = tmp_path / "verdict.json"
        ended = tracereplay("bisect", by, long_golden, "--engine", "toy", "--json", file, *words)
        assert ended.code == code, ended.err
        found: dict[str, Any] = json.loads(file.read_text())
        return {**found, "out": ended.out, "err": ended.err}

    return run


def minimal(verdict: dict[str, Any]) -> set[str]:
    return {member["name"] for member in verdict["bisection"]["minimal"]}


def test_two_faults_at_once_are_the_minimal_set_and_nothing_else_is(bisect: Bisect) -> None:
    verdict = bisect("--set", TWO)
    assert verdict["closure"]["held"]
    assert verdict["closure"]["rows"] == 32
    assert minimal(verdict) == {FIRST, SECOND}
    assert verdict["bisection"]["proven"]
    assert verdict["bisection"]["engine_starts"] == 1
    assert "Only 32 positions were measured" in " ".join(verdict["reasons"])
    shares = {tuple(a["operators"]): a["explains"] for a in verdict["attribution"] if a["role"] == "minimal"}
    assert shares == {(FIRST, SECOND): 1.0} or shares == {(SECOND, FIRST): 1.0}


def test_two_faults_among_honest_differences_are_in_it_and_the_rest_is_rounding(bisect: Bisect) -> None:
    verdict = bisect("--set", TWO, "--set", "rounding=twice")
    assert verdict["closure"]["held"]
    assert {FIRST, SECOND} <= minimal(verdict)
    rest = [m for m in verdict["bisection"]["minimal"] if m["name"] not in (FIRST, SECOND)]
    assert {m["class"] for m in rest} <= {"rounding"}
    assert verdict["bisection"]["largest_left"]["class"] == "rounding"
    assert f"Out of tolerance: {SECOND}, {FIRST}" in " ".join(verdict["reasons"])
    roles = {a["role"]: a for a in verdict["attribution"]}
    assert verdict["tokens"]["differing"] > 0
    assert roles["all"]["explains"] == 1.0
    assert (roles["minimal"]["tokens_differ"], roles["minimal"]["restores"]) == (0, True)
    assert roles["complement"]["tokens_differ"] > 0  # all but that set does not give golden's tokens back
    assert verdict["bisection"]["complement_restores"] is False
    assert (
        "without the own error of any operator the candidate gives golden's logits bit for bit, 32 rows"
        in verdict["out"]
    )


def test_an_edge_counts_as_an_operator(bisect: Bisect) -> None:
    verdict = bisect("--set", "flaw=model.layers.1.mlp.gate_up_proj:scaled_edge")
    assert minimal(verdict) == {"model.layers.1.mlp.gate_up_proj (input 0)"}
    assert verdict["attribution"][0]["operators"] == ["edge into MergedColumnParallelLinear"]


def test_where_golden_has_only_a_sum_its_addends_are_cancelled_together(
    tracereplay: Program, model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden, file = tmp_path / "split.trace", tmp_path / "verdict.json"
    words = "--engine", "toy", "--model", model
    monkeypatch.setenv("TOY_NAMING", "split")
    assert tracereplay("record", *words, "--prompts", prompts, "--logprobs", 0, "-o", golden).code == 0
    fault = "flaw=model.norm:scaled_edge,model.layers.0.self_attn.qkv_proj:scale"
    ended = tracereplay("bisect", "operators", golden, *words, "--set", fault, "--json", file)
    assert ended.code == 1, ended.err
    verdict = json.loads(file.read_text())
    assert verdict["closure"]["held"]
    assert minimal(verdict) == {"model.norm (input 0)", "model.layers.0.self_attn.qkv_proj"}
    assert verdict["bisection"]["complement_restores"] is None


def test_what_the_sampler_reports_otherwise_is_cancelled_too(bisect: Bisect) -> None:
    verdict = bisect("--set", "flaw=sampler:scale")
    assert minimal(verdict) == {"sampler"}
    assert verdict["closure"]["held"]


def test_without_a_divergence_there_is_nothing_to_bisect(bisect: Bisect) -> None:
    verdict = bisect(code=0)
    assert verdict["bisection"] is None
    assert "There is no divergence to bisect." in verdict["err"]


def test_wrong_positions_are_cancelled_where_they_do_their_harm(bisect: Bisect) -> None:
    verdict = bisect("--set", "flaw=model:positions")
    assert verdict["closure"]["held"]
    assert minimal(verdict) <= {f"model.layers.{i}.self_attn.rotary_emb (input 0)" for i in (0, 1)}
    assert not verdict["bisection"]["skipped"]


def test_an_engine_that_does_not_repeat_itself_breaks_the_closure_and_is_named(bisect: Bisect) -> None:
    verdict = bisect("--set", "noise=0.05", "--max-passes", 8)
    assert not verdict["closure"]["held"]
    assert (
        verdict["closure"]["first_broken"]
        == "output 0 of model.layers.0.self_attn.qkv_proj is not what it was on golden inputs"
    )
    assert "model.layers.0.self_attn.qkv_proj" in verdict["closure"]["unstable"]
    assert "sites are not reproducible on the same inputs" in " ".join(verdict["reasons"])


def test_a_choice_that_differs_on_golden_logits_stays_unexplained(bisect: Bisect) -> None:
    verdict = bisect("--set", "flaw=sampler:second")
    assert verdict["closure"]["held"]
    assert verdict["bisection"]["minimal"] is None
    assert verdict["bisection"]["skipped"][0]["name"] == "sampler"
    assert "no logprob differs, only the sampled tokens" in " ".join(verdict["reasons"])
    assert "nan" not in verdict["out"] + verdict["err"]


def test_the_number_of_passes_is_bounded(bisect: Bisect) -> None:
    verdict = bisect("--set", "rounding=twice", "--set", TWO, "--max-passes", 3)
    assert verdict["bisection"]["passes"] == 3
    assert not verdict["bisection"]["proven"]
    assert "All 3 passes are used up" in verdict["err"]


def test_an_interrupted_bisection_goes_on_from_what_it_measured(bisect: Bisect, tmp_path: Path) -> None:
    work = tmp_path / "work"
    words = ("--set", TWO, "--set", "rounding=twice", "--work", work, "--max-passes", 12)
    whole = bisect(*words)
    journal = work / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:4]) + lines[4][:30])  # cut off in the middle of a line
    again = bisect(*words)
    assert again["err"].count("Pass ") == len(lines) - 4
    assert "Generating again with golden tokens forced" not in again["err"]
    assert again["attribution"] == whole["attribution"]
    done = bisect(*words)
    assert done["bisection"]["engine_starts"] == 0
    assert done["attribution"] == whole["attribution"]


def test_a_folder_of_another_bisection_is_refused(
    tracereplay: Program, bisect: Bisect, long_golden: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    bisect("--set", TWO, "--work", work)
    words = ("bisect", "operators", long_golden, "--engine", "toy", "--work")
    ended = tracereplay(*words, work, "--set", "rounding=twice")
    assert (ended.code, "contains a bisection of another golden trace" in ended.err) == (2, True)
    write(tmp_path / "thesis.txt", "years of work")
    ended = tracereplay(*words, tmp_path)
    assert (ended.code, "contains something other than a bisection" in ended.err) == (2, True)


def test_an_engine_that_changed_since_does_not_go_on_from_what_was_measured(
    tracereplay: Program, bisect: Bisect, long_golden: Path, home: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    bisect("--set", TWO, "--work", work)
    journal = work / "journal.jsonl"
    journal.write_text(journal.read_text().splitlines(keepends=True)[0])
    registered = json.loads((home / "engines" / "toy.json").read_text())
    write(home / "engines" / "toy.json", json.dumps({**registered, "settings": {"enforce_eager": True}}))
    ended = tracereplay("bisect", "operators", long_golden, "--engine", "toy", "--set", TWO, "--work", work)
    assert ended.code == 2
    assert "The engine toy is not as it was when" in ended.err
    assert "its settings changed" in ended.err


@pytest.mark.parametrize(
    "words",
    [
        ("operators", "--engine", "toy"),
        ("settings", "--engine", "toy"),
        ("versions", "--good", "1.0", "--bad", "2.0", "--versions", "1.0,2.0"),
    ],
    ids=lambda words: words[0],
)
def test_other_weights_are_found_before_the_engine_starts(
    tracereplay: Program, long_golden: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    kind, *rest = words
    other = make_model(tmp_path / "other", "other weights")
    ended = tracereplay("bisect", kind, long_golden, *rest, "--model", other, "--json", "-")
    verdict = json.loads(ended.out)
    assert (ended.code, verdict["verdict"], verdict["cause"]) == (3, "inconclusive", "setting")
    assert "are not those that the golden trace was recorded with" in verdict["reasons"][0]
    assert "Starting" not in ended.err


def test_a_verdict_with_a_bisection_is_shown_again(tracereplay: Program, bisect: Bisect, tmp_path: Path) -> None:
    bisect("--set", TWO)
    shown = tracereplay("report", tmp_path / "verdict.json").out
    assert "within what is allowed, without the own errors of" in shown
    assert FIRST in shown


# -- settings ------------------------------------------------------------------------------------------------


def test_the_setting_that_makes_the_difference_is_named_among_innocent_ones(bisect: Bisect) -> None:
    fault = "flaw=model.norm:coarse"
    verdict = bisect("--set", "enforce_eager=true", "--set", fault, "--set", "max_model_len=99", by="settings")
    assert [m["name"] for m in verdict["bisection"]["minimal"]] == ["flaw"]
    assert verdict["bisection"]["arguments"] == ["no --set flaw"]
    assert verdict["cause"] == "setting"
    assert verdict["bisection"]["proven"]
    assert (
        "With golden's flaw = None the candidate gives golden's tokens and logprobs, within what is allowed."
        in verdict["out"]
    )


def test_settings_that_are_refused_together_are_skipped_with_the_reason(
    tracereplay: Program, model: Path, tmp_path: Path
) -> None:
    golden, prompts = tmp_path / "f.trace", write(tmp_path / "p.jsonl", '{"prompt_token_ids": [5, 6, 7, 8]}')
    words = ("--engine", "toy", "--model", model, "--prompts", prompts, "-o", golden, "--set", "dtype=float32")
    assert tracereplay("record", *words).code == 0
    common = ("--engine", "toy", "--set", "dtype=bfloat16", "--set", "rounding=twice", "--json", "-")
    ended = tracereplay("bisect", "settings", golden, *common, "--strict")
    verdict = json.loads(ended.out)
    assert {m["name"] for m in verdict["bisection"]["minimal"]} == {"dtype", "rounding"}
    assert verdict["bisection"]["minimal"][0]["value"] == "float32"
    assert verdict["bisection"]["arguments"][0] == '--set dtype="float32"'
    alone = [a["operators"] for a in verdict["attribution"]]
    assert ["rounding"] in alone
    assert ["dtype"] not in alone  # refused: it stands for no figure


def test_arguments_that_an_engine_was_registered_with_count(bisect: Bisect, home: Path) -> None:
    registered = json.loads((home / "engines" / "toy.json").read_text())
    registered["settings"] = {"flaw": "model.norm:coarse"}
    write(home / "engines" / "toy.json", json.dumps(registered))
    verdict = bisect("--max-starts", 4, by="settings")
    assert [m["name"] for m in verdict["bisection"]["minimal"]] == ["flaw"]


def test_where_settings_are_the_same_none_can_be_to_blame(bisect: Bisect, home: Path) -> None:
    engine = json.loads((home / "engines" / "toy.json").read_text())
    write(home / "engines" / "toy.json", json.dumps({**engine, "settings": {"flaw": "model.norm:coarse"}}))
    verdict = bisect("--from", "toy", by="settings")
    assert verdict["bisection"]["minimal"] is None
    assert "The two do not differ in any setting that could be changed." in verdict["reasons"]


def test_what_was_tried_is_said_where_the_starts_are_spent(
    bisect: Bisect, long_golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((long_golden / "manifest.json").read_text())
    monkeypatch.setenv("TOY_FLAW", "model.norm:coarse")  # no setting can be to blame
    manifest["run"]["engine"]["settings"]["enforce_eager"] = True  # a default that came to be so
    (long_golden / "manifest.json").write_bytes(write_manifest(manifest))
    verdict = bisect("--set", "max_model_len=99", "--max-starts", 1, by="settings")
    assert verdict["bisection"]["minimal"] is None
    said = verdict["reasons"][0]
    assert said.startswith("All 1 engine starts were spent before a set of golden's settings was found: 2 differ.")
    assert "At most 1 were set together" in said
    assert "not enough: max_model_len; never set: enforce_eager." in said


def test_a_set_that_was_not_shown_to_be_the_smallest_is_said_to_be_none(bisect: Bisect) -> None:
    words = ("--set", "flaw=model.norm:coarse", "--set", "enforce_eager=true")
    verdict = bisect(*words, "--max-starts", 1, by="settings")
    assert len(verdict["bisection"]["minimal"]) == 2
    assert "The 1 starts ran out before each was shown to be needed." in verdict["reasons"][0]


def test_the_settings_of_another_engine_can_be_taken(bisect: Bisect, home: Path) -> None:
    other = json.loads((home / "engines" / "toy.json").read_text())
    write(home / "engines" / "good.json", json.dumps({**other, "name": "good"}))
    verdict = bisect("--set", "flaw=model.norm:coarse", "--from", "good", by="settings")
    assert [m["name"] for m in verdict["bisection"]["minimal"]] == ["flaw"]
    assert "Starting the engine good, to learn its settings" in verdict["err"]


# -- versions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--good", "0.32.0", "--bad", "0.27.1"), "--good 0.32.0 is not older than --bad 0.27.1"),
        (("--good", "0.27.1", "--bad", "latest"), "'latest' is not a version"),
        (("--good", "0.27.1", "--bad", "0.32.0", "--package", "vllm==1"), "must be only a name"),
        (("--good", "0.27.1", "--bad", "0.32.0", "--versions", "0.9.0"), "0.9.0, which is not between"),
    ],
)
def test_a_range_that_cannot_be_walked(
    tracereplay: Program, long_golden: Path, words: tuple[str, ...], sentence: str
) -> None:
    ended = tracereplay("bisect", "versions", long_golden, *words)
    assert (ended.code, sentence in ended.err) == (2, True), ended.err


def test_without_a_network_it_says_what_to_do(
    tracereplay: Program, long_golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = write(tmp_path / "uv", "#!/bin/sh\necho 'error: Failed to fetch' >&2\nexit 2\n")
    uv.chmod(0o755)
    monkeypatch.setattr("tracereplay.environments.releases.uv_binary", lambda: str(uv))
    ended = tracereplay("bisect", "versions", long_golden, "--good", "0.27.1", "--bad", "0.32.0")
    assert ended.code == 4
    assert "Without a network, list the versions to try with --versions" in ended.err


def test_a_trial_records_tokens_and_no_tensors(bisect: Bisect, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is read of them alone; only with everything cancelled are outputs compared."""
    recorded: list[int] = []

    def noted(trace: Trace, name: str) -> Sampling:
        if name == "cancelled":
            recorded.append(sum(len(step.calls) for step in trace.segment(name).steps()))
        return sampled_tokens(trace, name)

    monkeypatch.setattr("tracereplay.bisector.operators.sampled_tokens", noted)
    verdict = bisect("--set", TWO)
    assert minimal(verdict) == {FIRST, SECOND}
    assert len(recorded) == verdict["bisection"]["passes"] > 1
    assert recorded[0] > 0
    assert recorded[1:] == [0] * (len(recorded) - 1)
