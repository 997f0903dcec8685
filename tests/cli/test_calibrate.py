"""Earning tolerances from end to end, with the toy engine as the engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_support import write
from program import Program

from tracereplay.comparator import Policy, load_policy
from tracereplay.comparator.numbers.tolerance import DEFAULTS

NOISY = "noise=0.1"  # the largest, relative, in every linear layer: more than four eps of bfloat16


def test_runs_that_agree_bit_for_bit_keep_the_defaults(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy.toml"
    ended = tracereplay("calibrate", golden, "--engine", "toy", "-o", out)
    assert ended.code == 0, ended.err
    assert load_policy(out) == Policy()
    text = out.read_text()
    for part in (
        "golden.trace",
        "batch: toy max_num_seqs=1",
        "threads: toy OMP_NUM_THREADS=",
        "chunks: toy enable",
    ):
        assert part in text
    assert "identical bit for bit in all runs" in ended.out
    assert "is tolerated, the default" in ended.out


def test_a_noisy_engine_passes_its_own_policy_and_a_fault_does_not(
    tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    out, words = tmp_path / "policy.toml", (golden, "--engine", "toy", "--set", NOISY)
    kept = tmp_path / "kept"
    diverged = tracereplay("replay", *words)
    assert (diverged.code, "exceeds" in diverged.out) == (1, True)

    ended = tracereplay("calibrate", *words, "--vary", "repeat", "--runs", 3, "-o", out, "--keep", kept)
    assert ended.code == 0, ended.err
    assert "above the default: " in ended.out
    policy = load_policy(out)
    linear = {rule.operator: rule for rule in policy.calibration if rule.kind == "operator"}
    assert {"QKVParallelLinear", "RowParallelLinear", "MergedColumnParallelLinear"} <= set(linear)
    assert "RMSNorm" not in linear  # it has no noise of its own
    assert all((rule.a or 0) > DEFAULTS["bfloat16"][0] for rule in linear.values())
    assert policy.logprob_max_abs > Policy().logprob_max_abs

    # Ten tokens say little about how far logprobs go: three runs' largest is doubled once in some ten runs.
    wide = re.sub(r"(?m)^max_abs = .*", "max_abs = 9", out.read_text(), count=1)
    policy_file = write(tmp_path / "mine.toml", "[tokens]\ndiffering = 9\n" + wide)
    again = tracereplay("replay", *words, "--policy", policy_file)
    assert again.code == 0, again.out
    runs = sorted(kept.iterdir())
    assert [run.name for run in runs] == [f"{i}-repeat.trace" for i in (1, 2, 3)]
    assert tracereplay("compare", golden, runs[0]).code == 1
    assert tracereplay("compare", golden, runs[0], "--policy", policy_file).code == 0
    refused = tracereplay("calibrate", *words, "--keep", kept)
    assert (refused.code, "is not an empty directory" in refused.err) == (2, True)
    faulty = tracereplay(
        "replay", golden, "--engine", "toy", "--set", f"{NOISY}", "--set", "flaw=model.norm:coarse", "--policy",
        policy_file,
    )  # fmt: skip
    assert (faulty.code, "Where      model.norm; " in faulty.out) == (1, True)


def test_what_the_engine_refuses_is_skipped_with_the_reason(
    tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    also = ("--also", "max_sequences=1", "--also", "dies=loading", "--also", "flaw=model.norm:nan")
    ended = tracereplay("calibrate", golden, "--engine", "toy", "--vary", "batch", *also)
    assert ended.code == 0, ended.err
    assert "also: toy max_sequences=1: This engine has no setting 'max_sequences'" in ended.out
    assert "RuntimeError: " in ended.out
    assert "output 0 of model.norm is not finite on one side; no tolerance allows that" in ended.out
    assert "logprob is not finite on one side" in ended.out
    assert "Skipped: " in ended.err
    policy = load_policy(write(tmp_path / "policy.toml", ended.out))  # a policy, whatever the engine printed
    assert policy.logprob_max_abs == Policy().logprob_max_abs


def test_another_engine_and_variables_can_be_varied(tracereplay: Program, golden: Path) -> None:
    ended = tracereplay(
        "calibrate", golden, "--engine", "toy", "--vary", "", "--also", "engine=toy rounding=twice X_Y=0|1"
    )
    assert ended.code == 0, ended.err
    assert "also: toy rounding=twice X_Y=0|1; differs by 0." in ended.out
    assert 'operator = "RMSNorm"' in ended.out
    assert "a = 3.0" in ended.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--vary", "weather"), "no variation 'weather'"),
        (("--vary", ""), "There is nothing to vary"),
        (("--also", "fast"), "'fast' is not of the form KEY=VALUE"),
        (("--also", " "), "changes nothing"),
        (("--also", "engine=gremlin"), "no engine named 'gremlin'"),
        (("--vary", "", "--also", "dies=loading"), "No run could be made. also: toy dies=loading: "),
        (("-o", "policy.toml/x"), "cannot be written"),
        (("--keep", "no/such/place"), "cannot be created"),
    ],
)
def test_a_mistake_is_a_sentence(tracereplay: Program, golden: Path, words: tuple[str, ...], message: str) -> None:
    ended = tracereplay("calibrate", golden, "--engine", "toy", *words)
    assert ended.code == 2
    assert message in ended.err.replace("\n", " ")


def test_a_policy_that_is_there_is_kept(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    out = write(tmp_path / "policy.toml", "mine")
    ended = tracereplay("calibrate", golden, "--engine", "toy", "-o", out)
    assert (ended.code, out.read_text()) == (2, "mine")
    assert "--force" in ended.err


def test_a_replay_is_no_golden_trace(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    replayed = tmp_path / "replayed.trace"
    assert tracereplay("replay", golden, "--engine", "toy", "-o", replayed).code == 0
    ended = tracereplay("calibrate", replayed, "--engine", "toy", "--vary", "batch")
    assert (ended.code, "not a recording" in ended.err) == (2, True)
