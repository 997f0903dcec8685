"""What is wrong is said in one sentence, with the right exit code and without a traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import make_model, write
from program import Ended, Program

from tracereplay.trace import TraceDirectory, open_trace
from tracereplay.trace.manifest import write_manifest
from tracereplay.verdict import Verdict


@pytest.fixture
def record(tracereplay: Program, model: Path, prompts: Path, tmp_path: Path) -> Callable[..., Ended]:
    """``tracereplay record`` with everything right but what a test gives."""

    def run(*words: object, engine: str = "toy", model: Path = model, prompts: Path = prompts) -> Ended:
        common = ("--engine", engine, "--model", model, "--prompts", prompts, "-o", tmp_path / "out.trace")
        return tracereplay("record", *common, *words)

    return run


def check(ended: Ended, code: int, *words: str) -> None:
    """The program ended with ``code`` and a sentence that has all the ``words``."""
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err


# -- recording ----------------------------------------------------------------------------------------------


def test_an_engine_that_does_not_exist(record: Callable[..., Ended], tmp_path: Path) -> None:
    ended = record(engine="v9")
    check(ended, 2, "There is no engine named 'v9'", "There are: toy", "tracereplay engine create v9")
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "out.trace").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sample", "0"), "'0' is no share of requests"),
        (("--sample", "2"), "'2' is no share of requests"),
        (("--sample", "1/0"), "'1/0' is no share of requests"),
        (("--sample", "abc"), "'abc' is no share of requests"),
        (("--sample", "-1/5"), "is no share of requests"),
        (("--requests", ""), "--requests is empty"),
        (("--tokens", "5:5"), "'5:5' is no range of positions"),
        (("--tokens", "9:3"), "'9:3' is no range of positions"),
        (("--tokens", "64"), "'64' is no range of positions"),
        (("--tokens", "-1:4"), "'-1:4' is no range of positions"),
        (("--every", "0"), "--every 0 would never record a step"),
        (("--sides", "up"), "--sides up is none"),
        (("--sides", ""), "is none; give in, out, or in,out"),
        (("--level", "kernel", "--marked"), "Kernels take whole batches"),
    ],
)
def test_a_choice_that_makes_no_sense_starts_no_server(
    tracereplay: Program, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    command = ("--", "touch", str(tmp_path / "started"))
    ended = tracereplay("record", "-o", tmp_path / "out.trace", *words, *command)
    check(ended, 2, said)
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "started").exists()
    assert not (tmp_path / "out.trace").exists()


def test_requests_are_chosen_of_a_command_only(record: Callable[..., Ended]) -> None:
    check(record("--sample", "1/2"), 2, "All prompts of a file are recorded", "--sample")
    check(record("--marked"), 2, "All prompts of a file are recorded", "--marked")
    check(record("--every", "2"), 2, "The toy engine records every row of every step")


def test_a_model_directory_that_does_not_exist(record: Callable[..., Ended], tmp_path: Path) -> None:
    check(record(model=tmp_path / "nowhere"), 2, "There is no model directory", "nowhere")
    (tmp_path / "empty").mkdir()
    check(record(model=tmp_path / "empty"), 2, "has no config.json")
    assert not (tmp_path / "out.trace").exists()


def test_a_prompt_file_that_does_not_exist(record: Callable[..., Ended], tmp_path: Path) -> None:
    check(record(prompts=tmp_path / "nowhere.jsonl"), 2, "nowhere.jsonl cannot be read: No such file")
    check(record(prompts=tmp_path), 2, "cannot be read: Is a directory")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ('{"prompt": "a"}\n{"prompt": "b"', "Line 2 of"),
        ('{"prompt": "a"}\n\n["b"]', "Line 3 of"),
        ('{"prompt": ""}', "has an empty prompt"),
        ('{"prompt_token_ids": []}', "has an empty prompt"),
        ('{"prompt_token_ids": [1, -1]}', "non-negative integers"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens is 0"),
        ('{"prompt": "a", "temprature": 0}', "unknown key 'temprature'"),
        ('{"text": "a"}', "unknown key 'text'"),
        (
            '{"prompt": "a", "multi_modal_data": {"image": "a.png"}}',
            "gives multi_modal_data, and requests with images",
        ),
        ('{"prompt": "a", "image_url": {"url": "data:"}}', "prompts of text or of token ids only"),
        ('{"body": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}}', "chat requests cannot"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_prompt_file(record: Callable[..., Ended], tmp_path: Path, text: str, sentence: str) -> None:
    ended = record(prompts=write(tmp_path / "broken.jsonl", text))
    check(ended, 2, sentence, "broken.jsonl")
    assert len(ended.err) < 800


def test_a_prompt_file_that_is_not_text(record: Callable[..., Ended], tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}')
    check(record(prompts=path), 2, "is not UTF-8 text (byte 12)")


def test_a_token_id_outside_the_vocabulary(record: Callable[..., Ended], tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"prompt_token_ids": [1]}\n{"prompt_token_ids": [2, 999]}\n')
    check(record(prompts=path), 2, "Prompt 1 has the token id 999; the model's vocabulary ends at 127.")
    assert not (tmp_path / "out.trace").exists()  # it would hold nothing, and be in the way of the next attempt


@pytest.mark.parametrize(
    "words", [("--max-tokens", 0), ("--max-tokens", "many"), ("--temperature", -1), ("--n", 0), ("--loud",)]
)
def test_an_option_out_of_range_is_wrong_usage(record: Callable[..., Ended], words: tuple[object, ...]) -> None:
    check(record(*words), 2, str(words[0]))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--ring", "0MB"), "keeps nothing"),
        (("--ring", "800TB"), "is no size of a ring"),
        (("--ring", "800000GB"), "larger than this machine's memory"),
        (
            ("--ring", "1MB", "--trigger", "nonfinit"),
            "no trigger 'nonfinit'; did you mean nonfinite; there are",
        ),
        (("--ring", "1MB", "--trigger", "finish=boredom"), "never fires"),
        (("--ring", "1MB", "--trigger", "logprob<1"), "fires with every token"),
        (("--ring", "1MB", "--trigger-every", "often"), "is no time"),
        (("--ring", "1MB", "--trigger-most", "0"), "--trigger-most"),
        (("--ring", "1MB", "--level", "kernel"), "leave --level kernel out"),
        (("--ring", "1MB", "--force"), "--force replaces a trace"),
        (("--trigger", "error"), "leave out --trigger"),
    ],
)
def test_a_flight_recorder_that_cannot_be_is_refused_before_the_command_starts(
    tracereplay: Program, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    command = (sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')")
    check(tracereplay("record", "-o", tmp_path / "c", *words, "--", *command), 2, sentence)
    assert list(tmp_path.glob("ran")) == list(tmp_path.glob("c")) == []


def test_prompts_are_not_recorded_into_a_ring(record: Callable[..., Ended]) -> None:
    check(record("--ring", "1MB"), 2, "A ring is for a command of yours, after --")


def test_an_unknown_engine_setting(record: Callable[..., Ended]) -> None:
    check(record("--set", "enforce_eagre=true"), 2, "has no setting 'enforce_eagre'", "enforce_eager")


def test_a_setting_without_a_value(record: Callable[..., Ended]) -> None:
    check(record("--set", "enforce_eager"), 2, "--set 'enforce_eager' is not of the form KEY=VALUE.")


def test_an_engine_that_dies_while_loading_shows_its_last_lines(record: Callable[..., Ended]) -> None:
    ended = record("--set", "dies=loading")
    check(ended, 4, "The engine 'toy' ended with exit code 3 while starting; its last lines were:")
    assert ended.err.splitlines()[-2:] == [
        "    RuntimeError: the toy engine cannot load its model",
        "Run the same command with --log FILE to keep all of its output.",
    ]


def test_an_engine_that_dies_while_generating_leaves_what_was_finished(
    record: Callable[..., Ended], tracereplay: Program, tmp_path: Path
) -> None:
    check(
        record("--set", "dies=generating"), 4, "was killed by SIGKILL while generating", "    the toy engine ran"
    )
    trace = open_trace(tmp_path / "out.trace")
    assert not trace.complete
    assert len(trace.steps("record")) > 1
    assert "INCOMPLETE" in tracereplay("show", tmp_path / "out.trace").out


def test_a_recorder_that_could_not_write_is_said(record: Callable[..., Ended], tmp_path: Path) -> None:
    check(record("--set", "loses=true"), 4, "out.trace is incomplete: No space left on device", "(3 times)")
    assert not open_trace(tmp_path / "out.trace").complete


def test_an_engine_whose_interpreter_is_gone(record: Callable[..., Ended], home: Path) -> None:
    (home / "python").unlink()
    check(record(), 4, "python: No such file or directory")


def test_a_trace_that_is_there_is_kept_without_force(
    record: Callable[..., Ended], golden: Path, tracereplay: Program, tmp_path: Path
) -> None:
    before = (golden / "manifest.json").read_bytes()
    shutil.copytree(golden, tmp_path / "out.trace")
    check(record("--set", "dies=loading"), 2, "already exists", "--force")
    assert (tmp_path / "out.trace" / "manifest.json").read_bytes() == before
    assert record("--force").code == 0


def test_force_does_not_delete_what_is_no_trace(record: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "out.trace").mkdir()
    write(tmp_path / "out.trace" / "thesis.txt", "years of work")
    check(record("--force"), 2, "that is not a trace")
    assert (tmp_path / "out.trace" / "thesis.txt").exists()


def test_a_place_that_cannot_be_written(tracereplay: Program, model: Path, prompts: Path, tmp_path: Path) -> None:
    out = write(tmp_path / "file", "") / "out.trace"
    common = ("--engine", "toy", "--model", model, "--prompts", prompts)
    check(tracereplay("record", *common, "-o", out), 2, "cannot be created")


def test_a_full_disk(record: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "out.trace"))

    monkeypatch.setattr(TraceDirectory, "add_pass", full)
    check(record(), 4, "out.trace: No space left on device.")


def test_record_needs_an_engine_a_model_and_prompts(tracereplay: Program, tmp_path: Path) -> None:
    ended = tracereplay("record", "-o", tmp_path / "t.trace", "--engine", "toy")
    check(ended, 2, "record needs --model, --prompts, or a command of yours after --.")


# -- replaying and comparing ----------------------------------------------------------------------------------


def test_replaying_what_is_not_there(tracereplay: Program, tmp_path: Path) -> None:
    check(tracereplay("replay", tmp_path / "no.trace", "--engine", "toy"), 5, "There is no trace at")
    check(tracereplay("replay", tmp_path, "--engine", "toy"), 5, "is not a trace")


def test_replaying_a_replay(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    candidate = tmp_path / "candidate.trace"
    assert tracereplay("replay", golden, "--engine", "toy", "-o", candidate).code == 0
    check(tracereplay("replay", candidate, "--engine", "toy"), 2, "not a recording")


OTHERS = "are not those that the golden trace was recorded with"


@pytest.mark.parametrize("mode", ["injected", "rerun"])
def test_other_weights_are_found_before_an_engine_starts(
    tracereplay: Program, golden: Path, tmp_path: Path, mode: str
) -> None:
    other = make_model(tmp_path / "other", "other weights")
    out, told = tmp_path / "out.trace", tmp_path / "verdict.json"
    ended = tracereplay(
        "replay", golden, "--engine", "toy", "--model", other, "-o", out, "--json", told, "--mode", mode
    )
    assert ended.code == 3
    assert OTHERS in ended.out.replace("\n", " ")
    assert "replay --other-weights" in ended.out.replace("\n", " ")
    assert "Starting" not in ended.err
    assert not out.exists()
    verdict = json.loads(told.read_text())
    assert (verdict["verdict"], verdict["cause"], verdict["mode"]) == ("inconclusive", "setting", mode)
    assert [(d["name"], d["effect"]) for d in verdict["settings_diff"]] == [("weights", "semantic")]
    assert Verdict.from_dict(verdict).as_dict() == verdict
    again = tracereplay("report", told)
    assert OTHERS in again.out.replace("\n", " ")


def test_other_weights_that_are_meant_are_measured_and_blame_nobody(
    tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", "other weights")
    ended = tracereplay("replay", golden, "--engine", "toy", "--model", other, "--other-weights", "--json", "-")
    verdict = json.loads(ended.out)
    assert (ended.code, verdict["verdict"], verdict["cause"]) == (3, "inconclusive", "setting")
    assert "blames no operator" in verdict["reasons"][0]
    assert verdict["tokens"]["logprob_abs_diff"]["max"] > 0
    assert verdict["first_divergence"] is None
    alone = tracereplay("replay", golden, "--engine", "toy", "--mode", "isolated", "--other-weights")
    check(alone, 2, "leave out --other-weights")


def test_weights_without_a_digest_are_no_others(tracereplay: Program, golden: Path, model: Path) -> None:
    (model / "model.safetensors").unlink()
    ended = tracereplay("replay", golden, "--engine", "toy", "--model", model, "--json", "-")
    verdict = json.loads(ended.out)
    assert (ended.code, [(d["name"], d["effect"]) for d in verdict["settings_diff"]]) == (
        0,
        [("weights", "unknown")],
    )


def test_calibrating_with_other_weights_is_refused_once(
    tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", "other weights")
    ended = tracereplay("calibrate", golden, "--engine", "toy", "--model", other, "--vary", "batch,chunks")
    check(ended, 2, OTHERS)
    assert (ended.err.count(OTHERS), "Starting" in ended.err) == (1, False)


def test_a_golden_whose_model_has_moved(tracereplay: Program, golden: Path, model: Path, tmp_path: Path) -> None:
    model.rename(tmp_path / "moved")
    check(tracereplay("replay", golden, "--engine", "toy"), 2, "say with --model where it is now")
    assert tracereplay("replay", golden, "--engine", "toy", "--model", tmp_path / "moved").code == 0


def test_an_engine_that_dies_while_replaying_leaves_golden_alone(tracereplay: Program, golden: Path) -> None:
    before = open_trace(golden).digest()
    check(tracereplay("replay", golden, "--engine", "toy", "--set", "dies=generating"), 4, "was killed by SIGKILL")
    assert open_trace(golden).digest() == before


def test_a_golden_trace_that_was_cut_off(
    tracereplay: Program, record: Callable[..., Ended], tmp_path: Path
) -> None:
    record("--set", "dies=generating")
    ended = tracereplay("compare", tmp_path / "out.trace", tmp_path / "out.trace")
    assert ended.code == 3
    assert "incomplete" in ended.out


def test_a_damaged_trace(tracereplay: Program, golden: Path) -> None:
    segment = golden / "record-rank0.seg"
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    ended = tracereplay("compare", golden, golden)
    check(ended, 5, "record-rank0.seg")
    write(golden / "manifest.json", "{")
    check(tracereplay("show", golden), 5, "manifest.json cannot be read")


def test_a_broken_policy(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    policy = write(tmp_path / "policy.toml", "[tokens]\ndifering = 1\n")
    for words in (("replay", golden, "--engine", "toy"), ("compare", golden, golden)):
        check(tracereplay(*words, "--policy", policy), 2, "'differing'", "line 2 of")


def test_a_verdict_that_cannot_be_written_is_said_before_the_engine_starts(
    tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    ended = tracereplay("replay", golden, "--engine", "toy", "--json", tmp_path / "no" / "v.json")
    check(ended, 2, "--json", "the directory", "does not exist")
    assert "Starting" not in ended.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_verdict_on_a_full_disk(tracereplay: Program, golden: Path) -> None:
    check(tracereplay("compare", golden, golden, "--json", "/dev/full"), 4, "No space left on device")


def test_what_is_no_verdict(tracereplay: Program, tmp_path: Path) -> None:
    check(tracereplay("report", tmp_path / "no.json"), 2, "cannot be read: No such file")
    check(tracereplay("report", write(tmp_path / "v.json", "nope")), 2, "is not JSON")
    check(tracereplay("report", write(tmp_path / "v.json", "{}")), 2, "is not a verdict")
    check(tracereplay("report", write(tmp_path / "v.json", '{"schema": 1}')), 2, "cannot be read")


# -- the program itself -------------------------------------------------------------------------------------


def test_an_unknown_verb_is_wrong_usage(tracereplay: Program) -> None:
    check(tracereplay("rewind"), 2, "rewind")


def test_a_defect_of_ours_asks_to_be_reported(tracereplay: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("tracereplay.cli.compare.compare_traces", broken)
    ended = tracereplay("compare", "a", "b")
    check(ended, 70, "internal error in tracereplay, please report it: ZeroDivisionError: division by zero")
    shown = tracereplay("compare", "a", "b", "--debug")
    assert "Traceback" in shown.err
    assert shown.code == 70


def test_debug_shows_the_traceback_of_any_error(tracereplay: Program) -> None:
    assert "Traceback" in tracereplay("--debug", "show", "nowhere").err
    assert "Traceback" in tracereplay("show", "nowhere", "--debug").err


def test_names_in_a_trace_cannot_write_control_sequences(tracereplay: Program, golden: Path) -> None:
    manifest = json.loads((golden / "manifest.json").read_text())
    manifest["run"]["engine"]["name"] = "\x1b]0;gotcha\x07[bold]x"
    (golden / "manifest.json").write_bytes(write_manifest(manifest))
    for ended in (tracereplay("show", golden), tracereplay("compare", golden, golden)):
        assert "\x1b" not in ended.out + ended.err
        assert "[bold]" in ended.out
