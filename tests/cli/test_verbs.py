"""The verbs from end to end, with the toy engine as the engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import Program, write

from tracereplay.trace import Trace, open_trace


def test_record_says_what_it_recorded(tracereplay: Program, golden: Path) -> None:
    trace = open_trace(golden)
    assert trace.complete
    assert [p["prompt_token_ids"] for p in trace.run["workload"]["prompts"]] == [[5, 6, 7, 8], [*b"hello"]]
    assert len(trace.results["record"]["requests"][0]["token_ids"]) == 4
    assert len(trace.results["record"]["requests"][1]["token_ids"]) == 6


@pytest.fixture
def record(tracereplay: Program, model: Path, tmp_path: Path) -> Callable[..., Trace]:
    """Records one prompt without sampling parameters, with the given options."""

    def run(*words: object) -> Trace:
        prompts, out = write(tmp_path / "bare.jsonl", '{"prompt": "hi"}'), tmp_path / "t.trace"
        common = ("--engine", "toy", "--model", model, "--prompts", prompts, "-o", out)
        assert tracereplay("record", *common, *words).code == 0
        return open_trace(out)

    return run


def test_recording_is_greedy_with_logprobs_unless_told_otherwise(record: Callable[..., Trace]) -> None:
    sampling = record().run["workload"]["prompts"][0]["sampling"]
    assert sampling == {"max_tokens": 16, "temperature": 0.0, "logprobs": 0}


def test_options_reach_the_workload(record: Callable[..., Trace]) -> None:
    words = ("--max-tokens", 3, "--temperature", 0.7, "--seed", 11, "--logprobs", 2, "--n", 2)
    workload = record(*words, "--set", "enforce_eager=true").run["workload"]
    assert workload["prompts"][0]["sampling"] == {
        "max_tokens": 3, "temperature": 0.7, "seed": 11, "logprobs": 2, "n": 2,
    }  # fmt: skip
    assert workload["settings"] == {"enforce_eager": True}


def test_what_recording_changed_is_measured_and_stated(
    record: Callable[..., Trace], tracereplay: Program, tmp_path: Path
) -> None:
    trace = record("--check-observer", "--max-tokens", 2)
    assert trace.run["observer"]["tokens_differ"] == 0
    assert "recording changed the tokens of 0 of 1 sequences" in tracereplay("show", trace.path).out


def test_replaying_under_the_same_engine_matches(tracereplay: Program, golden: Path) -> None:
    ended = tracereplay("replay", golden, "--engine", "toy")
    assert ended.code == 0
    assert ended.out.startswith("MATCH")
    assert "Generating again with golden tokens forced" in ended.err


def test_a_planted_fault_is_named(tracereplay: Program, golden: Path) -> None:
    site = "model.layers.1.mlp.act_fn"
    ended = tracereplay("replay", golden, "--engine", "toy", "--set", f"flaw={site}:scale")
    assert ended.code == 1
    assert ended.out.startswith(f"DIVERGED  SiluAndMul at {site}")


def test_json_on_stdout_is_all_that_is_on_stdout(tracereplay: Program, golden: Path) -> None:
    ended = tracereplay("replay", golden, "--engine", "toy", "--json", "-")
    assert json.loads(ended.out)["verdict"] == "match"


def test_json_in_a_file_and_report_shows_it_again(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    replayed = tracereplay("replay", golden, "--engine", "toy", "--set", "rounding=twice", "--json", file)
    assert json.loads(file.read_text())["mode"] == "injected"
    shown = tracereplay("report", file)
    assert (shown.code, shown.out) == (0, replayed.out)


def test_rerun_only_asks_where_the_generations_part(tracereplay: Program, golden: Path) -> None:
    flaw = "flaw=model.norm:nan"
    ended = tracereplay("replay", golden, "--engine", "toy", "--mode", "rerun", "--set", flaw, "--json", "-")
    verdict = json.loads(ended.out)
    assert (verdict["mode"], verdict["first_divergence"]["site"]) == ("rerun", "model.norm")


def test_strict_tolerates_no_rounding(tracereplay: Program, golden: Path) -> None:
    words = ("replay", golden, "--engine", "toy", "--set", "rounding=twice")
    assert tracereplay(*words, "--strict").code == 1
    assert tracereplay(*words).code in (0, 1)


def test_a_policy_can_ignore_an_operator(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[logprobs]\nmax_abs = 9.0\n[tokens]\ndiffering = 99\n[[rule]]\nsite = "*"\nignore = true\n')
    flaw = "flaw=model.norm:scale"
    ended = tracereplay("replay", golden, "--engine", "toy", "--set", flaw, "--policy", policy)
    assert ended.code in (0, 3)


def test_a_kept_candidate_can_be_compared_later(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    candidate = tmp_path / "candidate.trace"
    flaw = "flaw=model.norm:scale"
    replayed = tracereplay("replay", golden, "--engine", "toy", "--set", flaw, "-o", candidate, "--json", "-")
    compared = tracereplay("compare", golden, candidate, "--json", "-")
    assert compared.code == replayed.code == 1
    assert json.loads(compared.out) == json.loads(replayed.out)


def test_without_out_the_candidate_leaves_nothing_behind(
    tracereplay: Program, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert tracereplay("replay", golden, "--engine", "toy").code == 0
    assert list(place.iterdir()) == []


def test_show_lists_the_run_its_passes_and_its_operators(tracereplay: Program, golden: Path) -> None:
    shown = tracereplay("show", golden).out
    assert "recording, 6 steps, 10 tokens, " in shown
    assert "2, of 4 to 5 tokens" in shown
    assert "QKVParallelLinear" in shown


def test_show_of_a_site_gives_its_tensors(tracereplay: Program, golden: Path) -> None:
    shown = tracereplay("show", golden, "model.layers.*.input_layernorm", "--steps", 1).out
    assert "model.layers.0.input_layernorm (RMSNorm), pass record" in shown
    assert "bfloat16" in shown
    assert "9x" in shown


def test_show_of_an_unknown_site_says_what_is_close(tracereplay: Program, golden: Path) -> None:
    ended = tracereplay("show", golden, "model.nrm")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "did you mean model.norm?" in ended.err


def test_the_log_keeps_what_the_engine_printed(
    tracereplay: Program, model: Path, prompts: Path, tmp_path: Path
) -> None:
    common = ("--engine", "toy", "--model", model, "--prompts", prompts, "-o", tmp_path / "t.trace")
    tracereplay("record", *common, "--set", "dies=generating", "--log", tmp_path / "engine.log")
    assert "out of luck" in (tmp_path / "engine.log").read_text()


# A command that "starts an engine": it leaves the segment that the plugin in a worker would have written.
COMMAND = """
import os, pathlib, sys
name = "record-rank0.seg"
data = (pathlib.Path(sys.argv[1]) / name).read_bytes()
(pathlib.Path(os.environ["TRACEREPLAY_RECORD"]) / name).write_bytes(data[: int(len(data) * float(sys.argv[2]))])
sys.exit(int(sys.argv[3]))
"""


@pytest.mark.parametrize(("share", "ends", "code"), [(1, 0, 0), (1, 7, 7), (0.7, 0, 4)])
def test_recording_a_command_ends_as_the_command_does_unless_the_trace_is_cut_off(
    tracereplay: Program, golden: Path, tmp_path: Path, share: float, ends: int, code: int
) -> None:
    out = tmp_path / "server.trace"
    ended = tracereplay("record", "-o", out, "--", sys.executable, "-c", COMMAND, golden, share, ends)
    assert ended.code == code, ended.err
    assert "Recorded " in ended.err
    assert open_trace(out).complete == (share == 1)


def test_a_command_that_records_nothing_is_said(tracereplay: Program, tmp_path: Path) -> None:
    ended = tracereplay("record", "-o", tmp_path / "a.trace", "--", sys.executable, "-c", "pass")
    assert (ended.code, "no vLLM engine in it was recorded" in ended.err) == (2, True)
    ended = tracereplay("record", "-o", tmp_path / "b.trace", "--", "no-such-program")
    assert (ended.code, "'no-such-program' was not found" in ended.err) == (2, True)
    ended = tracereplay("record", "-o", tmp_path / "c.trace", "--set", "a=1", "--", "true")
    assert (ended.code, "leave out" in ended.err) == (2, True)


def test_version_and_help(tracereplay: Program) -> None:
    assert tracereplay("--version").out == "tracereplay 0.1.0\n"
    for verb in ("record", "replay", "compare", "show", "report", "demo", "engine", "bisect", "logprobs"):
        assert verb in tracereplay("--help").out
        assert tracereplay(verb, "--help").code == 0


def test_logprobs_shows_what_a_trainer_would_see(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    candidate, file = tmp_path / "candidate.trace", tmp_path / "rollout.json"
    tracereplay("replay", golden, "--engine", "toy", "--set", "rounding=twice", "-o", candidate)
    ended = tracereplay("logprobs", golden, candidate, "--json", file)
    assert ended.code == 0
    for words in ("10 tokens in 2 sequences", "effective sample size", "all tokens are greedy", "log ratio, mean"):
        assert words in ended.out
    assert json.loads(file.read_text())["rollout"]["tokens"] == 10
    alone = tracereplay("logprobs", golden, candidate, "--json", "-")
    assert json.loads(alone.out) == json.loads(file.read_text())
    assert tracereplay("logprobs", candidate, golden).code == 2
