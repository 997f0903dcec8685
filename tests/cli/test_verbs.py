"""The verbs from end to end, with the toy engine as the engine."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import write
from program import Program
from safetensors import safe_open

from tracereplay.trace import Trace, open_trace


def test_record_says_what_it_recorded(tracereplay: Program, golden: Path) -> None:
    trace = open_trace(golden)
    assert trace.complete
    assert [p.token_ids for p in trace.run.prompts] == [(5, 6, 7, 8), tuple(b"hello")]
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
    sampling = record().run.prompts[0].sampling
    assert sampling == {"max_tokens": 16, "temperature": 0.0, "logprobs": 0}


def test_options_reach_the_workload(record: Callable[..., Trace]) -> None:
    words = ("--max-tokens", 3, "--temperature", 0.7, "--seed", 11, "--logprobs", 2, "--n", 2)
    workload = record(*words, "--set", "enforce_eager=true").manifest["run"]["workload"]
    assert workload["prompts"][0]["sampling"] == {
        "max_tokens": 3, "temperature": 0.7, "seed": 11, "logprobs": 2, "n": 2,
    }  # fmt: skip
    assert workload["settings"] == {"enforce_eager": True}


def test_what_recording_changed_is_measured_and_stated(
    record: Callable[..., Trace], tracereplay: Program, tmp_path: Path
) -> None:
    trace = record("--check-observer", "--max-tokens", 2)
    assert (trace.run.observer or {})["tokens_differ"] == 0
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
    assert ended.out.startswith("DIVERGED   SiluAndMul computes something else")
    assert f"Where      {site}; request " in ended.out


def test_json_on_stdout_is_all_that_is_on_stdout(tracereplay: Program, golden: Path) -> None:
    ended = tracereplay("replay", golden, "--engine", "toy", "--json", "-")
    assert json.loads(ended.out)["verdict"] == "match"


def test_json_in_a_file_and_report_shows_it_again(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    replayed = tracereplay("replay", golden, "--engine", "toy", "--set", "rounding=twice", "--json", file)
    assert json.loads(file.read_text())["mode"] == "injected"
    shown = tracereplay("report", file)
    assert shown.code == 0
    # All but what only the command knows: whether these are all options that the candidate was run with.
    assert _rest(shown.out) == _rest(replayed.out)
    assert "--set rounding=twice" in replayed.out
    assert "--set rounding=twice" in shown.out
    assert "add the other options that the candidate was run with" in shown.out


def _rest(report: str) -> str:
    return report[report.index("\ngolden ") :]


def test_the_command_after_comparing_two_recordings_shows_their_difference(
    tracereplay: Program, golden: Path, model: Path, prompts: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.trace"
    words = "--engine", "toy", "--model", model, "--prompts", prompts, "--set", "rounding=twice"
    assert tracereplay("record", *words, "-o", other).code == 0
    shown = tracereplay("compare", golden, other).out
    command = shown.partition("Next ")[2].partition("gives each operator")[0].replace("\\\n", " ")
    replayed = tracereplay(*shlex.split(command)[1:])
    assert (replayed.code, replayed.out.split()[0]) == (1, "DIVERGED")


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
    assert (ended.code, "no engine of vLLM in it was recorded" in ended.err) == (2, True)
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


# -- verify, pack, export -------------------------------------------------------------------------------------


def cut(trace: Path, share: float) -> None:
    segment = trace / "record-rank0.seg"
    data = segment.read_bytes()
    segment.write_bytes(data[: int(len(data) * share)])


def test_verify_tells_whole_interrupted_and_damaged_traces_apart(tracereplay: Program, golden: Path) -> None:
    ended = tracereplay("verify", golden)
    assert (ended.code, ended.out.splitlines()[0][:8]) == (0, "complete")
    cut(golden, 0.7)
    ended = tracereplay("verify", golden)
    assert (ended.code, ended.out.splitlines()[0][:11]) == (3, "recoverable")
    assert "no end mark after byte" in ended.out
    ended = tracereplay("verify", golden, "--repair")
    assert "Rebuilt the index of record-rank0.seg" in ended.err
    assert (ended.code, "its index was rebuilt" in ended.out) == (3, True)
    segment = golden / "record-rank0.seg"
    data = bytearray(segment.read_bytes())
    data[200] ^= 1
    segment.write_bytes(data)
    ended = tracereplay("verify", golden, "--json")
    report = json.loads(ended.out)
    assert (ended.code, report["state"]) == (5, "damaged")
    assert "at byte" in report["segments"][0]["problem"]


def test_a_packed_trace_serves_as_the_directory_does(tracereplay: Program, golden: Path) -> None:
    ended = tracereplay("pack", golden, "--level", 9)
    assert ended.code == 0
    packed = golden.with_name("golden.trace.pack")
    assert str(packed) in ended.err
    assert tracereplay("verify", packed).code == 0
    assert tracereplay("compare", golden, packed).code == 0
    replayed = tracereplay("replay", packed, "--engine", "toy", "-o", golden.with_name("candidate.trace"))
    assert replayed.code == 0, replayed.err
    again = tracereplay("pack", golden)
    assert (again.code, "already exists" in again.err) == (2, True)


def test_a_candidate_packed_as_a_difference_is_compared_with_golden(tracereplay: Program, golden: Path) -> None:
    candidate, delta = golden.with_name("candidate.trace"), golden.with_name("elsewhere") / "delta.pack"
    assert tracereplay("replay", golden, "--engine", "toy", "-o", candidate).code == 0
    delta.parent.mkdir()
    assert tracereplay("pack", candidate, "--base", golden, "-o", delta).code == 0
    assert delta.stat().st_size < sum(p.stat().st_size for p in candidate.iterdir()) / 2
    assert tracereplay("compare", golden, delta).code == 0
    assert tracereplay("verify", delta, "--base", golden).code == 0
    alone = tracereplay("show", delta, "model.norm")
    assert (alone.code, "put it there" in alone.err) == (5, True)
    assert "model.norm" in tracereplay("show", delta, "model.norm", "--base", golden).out


def test_export_writes_what_the_trace_holds(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    tensors, calls = tmp_path / "t.safetensors", tmp_path / "c.jsonl"
    ended = tracereplay("export", golden, "model.norm", "--step", 1, "-o", tensors, "--calls", calls)
    assert ended.code == 0, ended.err
    lines = [json.loads(line) for line in calls.read_text().splitlines()]
    step = open_trace(golden).segment("record").step(1)
    (call,) = [c for c in step.calls if c.site == "model.norm"]
    names = ("in0", "in1", "out0", "out1")
    assert [line["key"] for line in lines] == [f"1/model.norm/0/{name}" for name in names]
    with safe_open(tensors, framework="numpy") as file:
        assert sorted(file.keys()) == [line["key"] for line in lines]
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == {line["key"]: tuple(line["shape"]) for line in lines}
    data = tensors.read_bytes()
    assert all(value.load() in data for value in (*call.inputs, *call.outputs))
    assert lines[0]["rows"] == call.rows_in.tolist()


def test_export_of_one_request_has_its_rows_only(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    calls = tmp_path / "c.jsonl"
    assert tracereplay("export", golden, "--request", 1, "--calls", calls).code == 0
    rows = [row for line in calls.read_text().splitlines() for row in json.loads(line)["rows"]]
    assert {row[0] for row in rows} == {1}


def test_export_needs_to_know_where_to(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    ended = tracereplay("export", golden)
    assert (ended.code, "Nothing to write" in ended.err) == (2, True)
    ended = tracereplay("export", golden, "-o", tmp_path / "absent" / "x.safetensors")
    assert (ended.code, "cannot be written" in ended.err) == (2, True)
    ended = tracereplay("export", golden, "--step", 999, "--calls", tmp_path / "c.jsonl")
    assert (ended.code, "has no step 999" in ended.err) == (2, True)


def test_show_of_a_step_and_a_request_gives_their_rows(tracereplay: Program, golden: Path) -> None:
    shown = tracereplay("show", golden, "model.norm", "--step", 0, "--request", 1).out
    assert "5x64" in shown
    assert "9x64" not in shown
    assert tracereplay("show", golden, "model.norm", "--step", 99).code == 2
    assert "steps of record" in tracereplay("show", golden).out
    assert "model.layers.1.mlp.act_fn" in tracereplay("show", golden, "--all").out
