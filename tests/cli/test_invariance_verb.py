"""The same bits whatever the batch, from end to end, with the toy engine as the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_support import write
from program import Ended, Program

from tracereplay.invariance import default_prompts
from tracereplay.verdict.invariance import Invariance

NORM = "model.layers.1.post_attention_layernorm"


@pytest.fixture
def lengths(tmp_path: Path) -> Path:
    """Five requests of different lengths."""
    lines = (
        json.dumps({"prompt_token_ids": [(7 * i + n) % 120 for i in range(n)], "max_tokens": 3})
        for n in (3, 5, 9, 14, 22)
    )
    return write(tmp_path / "lengths.jsonl", "\n".join(lines))


def held(found: dict[str, Any]) -> dict[str, bool | None]:
    return {varied["what"]: varied["held"] for varied in found["varied"]}


def checked(tracereplay: Program, *words: object) -> tuple[Ended, dict[str, Any]]:
    ended = tracereplay("invariance", *words, "--engine", "toy", "--json", "-")
    assert ended.out, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    again = Invariance.from_dict(found)
    assert again.as_dict() == found
    assert again.exit_code == ended.code
    return ended, found


def test_an_engine_without_a_fault_is_invariant(tracereplay: Program, model: Path, lengths: Path) -> None:
    ended, found = checked(tracereplay, model, "--prompts", lengths, "--vary", "chunks,order,batch")
    assert (ended.code, found["invariant"], found["first"], found["schema"]) == (0, True, None, 1)
    assert held(found) == {"repeat": True, "batch": True, "order": True, "chunks": True}
    values = {varied["what"]: varied["values"] for varied in found["varied"]}
    assert (values["batch"], values["order"][0], values["chunks"][-1]) == ([1, 2, 5], "as given", 11)
    assert "all together" not in ended.err  # batch has that run already
    assert ended.err.count("Starting the engine") == 2


def test_an_operator_that_flips_with_the_rows_of_a_call_is_named_with_their_number(
    tracereplay: Program, model: Path, lengths: Path, tmp_path: Path
) -> None:
    out, keep = tmp_path / "found.json", tmp_path / "runs"
    words = (model, "--prompts", lengths, "--set", f"flaw={NORM}:crowded:17", "--engine", "toy")
    ended = tracereplay("invariance", *words, "--vary", "batch,chunks", "--json", out, "--keep", keep)
    found = json.loads(out.read_text())
    assert (ended.code, found["invariant"]) == (1, False)
    assert held(found) == {"repeat": True, "batch": False, "chunks": False}
    first = found["first"]
    assert (first["site"], first["operator"], first["kind"], first["varied"]) == (
        NORM, "RMSNorm", "operator", "batch",
    )  # fmt: skip
    rows = first["rows"]
    assert (rows["flips_at"], rows["flips_between"]) == (17, [16, 17])
    assert rows["first"] == {"request": 2, "sequence": 0, "position": 0}  # 9 rows alone, 23 with the next request
    assert 0 < rows["differing"] < rows["of"]
    assert {own["site"] for own in found["operators"]} == {NORM}
    assert f"RMSNorm at {NORM}" in ended.out
    assert "It computes otherwise in calls of 17 rows and more." in ended.out
    names = {run.name for run in keep.iterdir()}
    assert names == {"base.trace", "repeat-again.trace", "batch-2.trace", "batch-5.trace", "chunks-11.trace"}
    assert tracereplay("compare", keep / "base.trace", keep / "repeat-again.trace", "--strict").code == 0
    assert tracereplay("compare", keep / "base.trace", keep / "batch-5.trace", "--strict").code == 1
    assert tracereplay("report", out).out == ended.out
    again = tracereplay("invariance", *words, "--json", out)  # its own kind of file is replaced
    assert (again.code, "already exists" in again.err) == (1, False), again.err


def test_chunks_alone_find_it_too(tracereplay: Program, model: Path, lengths: Path) -> None:
    flaw = f"flaw={NORM}:crowded:20"
    _, found = checked(tracereplay, model, "--prompts", lengths, "--set", flaw, "--vary", "chunks")
    assert (found["first"]["varied"], found["first"]["rows"]["flips_at"]) == ("chunks", 20)


def test_ranks_differ_and_the_number_of_rows_does_not_explain_it(
    tracereplay: Program, model: Path, lengths: Path
) -> None:
    ended, found = checked(tracereplay, model, "--prompts", lengths, "--vary", "tp")
    assert (ended.code, held(found)) == (1, {"repeat": True, "tp": False})
    assert found["first"]["operator"] == "RowParallelLinear"
    assert (found["first"]["rows"]["flips_at"], found["first"]["rows"]["flips_between"]) == (None, None)


def test_nothing_follows_from_an_engine_that_does_not_repeat_itself(
    tracereplay: Program, model: Path, lengths: Path
) -> None:
    words = (model, "--prompts", lengths, "--set", "noise=0.01", "--vary", "batch,tp")
    ended, found = checked(tracereplay, *words)
    assert (ended.code, held(found)) == (1, {"repeat": False, "batch": None, "tp": None})
    assert found["first"]["varied"] == "repeat"
    assert all("does not repeat itself" in v["reason"] for v in found["varied"] if v["held"] is None)
    assert ended.err.count("Generating again") == 1


def test_what_cannot_be_varied_is_said_with_the_reason(tracereplay: Program, model: Path, lengths: Path) -> None:
    ended, found = checked(tracereplay, model, "--prompts", lengths, "--vary", "order,cache,graphs")
    assert (ended.code, found["invariant"]) == (3, None)
    assert held(found) == {"repeat": True, "order": True, "cache": None, "graphs": None}
    reasons = {varied["what"]: varied["reason"] for varied in found["varied"]}
    assert "no setting 'enable_prefix_caching'" in reasons["cache"]
    assert reasons["graphs"] == "The toy engine has no graphs."
    shown = tracereplay("invariance", model, "--engine", "toy", "--prompts", lengths, "--vary", "order,graphs")
    assert (shown.code, "--vary order checks the rest alone" in shown.out) == (3, True)


def test_a_limit_on_sequences_keeps_batches_from_being_varied(
    tracereplay: Program, model: Path, lengths: Path
) -> None:
    words = (model, "--prompts", lengths, "--vary", "batch", "--set", "max_num_seqs=1")
    ended, found = checked(tracereplay, *words)
    assert (ended.code, held(found)["batch"]) == (3, None)
    assert "max_num_seqs" in found["varied"][1]["reason"]


def test_one_request_makes_no_batch(tracereplay: Program, model: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", '{"prompt": "hello you", "max_tokens": 2}')
    ended, found = checked(tracereplay, model, "--prompts", one)
    assert (ended.code, held(found)["batch"], held(found)["order"], held(found)["chunks"]) == (3, None, None, True)


def test_a_traces_workload_is_served(tracereplay: Program, golden: Path) -> None:
    ended, found = checked(tracereplay, golden, "--vary", "batch,order,chunks")
    assert (ended.code, found["requests"], found["tokens"]) == (0, 2, 4 + 4 + 5 + 6)


def test_drawn_tokens_are_forced_and_not_compared(tracereplay: Program, model: Path, lengths: Path) -> None:
    words = ("--prompts", lengths, "--temperature", 0.9, "--n", 2, "--vary", "batch,order")
    assert checked(tracereplay, model, *words)[0].code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--vary", "weather"), "There is nothing named 'weather' to vary"),
        (("--vary", ","), "There is nothing to vary"),
        (("--engine", "gremlin"), "no engine named 'gremlin'"),
        (("--temperature", 1), "are for prompts of --prompts"),
        (("--model", "x"), "is the model"),
        (("--keep", "."), "is not an empty directory"),
        (("--prompts", "none.jsonl"), "none.jsonl cannot be read"),
        (("--set", "dies"), "not of the form KEY=VALUE"),
    ],
)
def test_a_mistake_is_a_sentence(tracereplay: Program, model: Path, words: tuple[Any, ...], message: str) -> None:
    ended = tracereplay("invariance", model, "--engine", "toy", *words)
    assert (ended.code, message in ended.err.replace("\n", " ")) == (2, True), ended.err


def test_what_is_no_model_is_refused(tracereplay: Program, tmp_path: Path) -> None:
    ended = tracereplay("invariance", tmp_path / "none", "--engine", "toy")
    assert (ended.code, "Traceback" in ended.err) == (2, False), ended.err


def test_a_trace_says_itself_what_is_generated(tracereplay: Program, golden: Path, lengths: Path) -> None:
    ended = tracereplay("invariance", golden, "--engine", "toy", "--prompts", lengths)
    assert (ended.code, "A trace says itself what is generated" in ended.err) == (2, True), ended.err


def test_an_engine_that_fails_in_the_base_run_ends_the_check(
    tracereplay: Program, model: Path, lengths: Path
) -> None:
    ended = tracereplay("invariance", model, "--engine", "toy", "--prompts", lengths, "--set", "dies=generating")
    assert (ended.code, "was killed" in ended.err, "Traceback" in ended.err) == (4, True, False), ended.err


def test_the_default_workload_fits_the_model(tmp_path: Path) -> None:
    write(tmp_path / "config.json", '{"vocab_size": 9, "max_position_embeddings": 64}')
    prompts = default_prompts(tmp_path, {})
    assert [len(p.token_ids or ()) for p in prompts] == [5, 17, 40, 56]
    assert {i for p in prompts for i in p.token_ids or ()} <= set(range(4, 9))
    assert default_prompts(tmp_path, {}) == prompts
    assert [len(p.token_ids or ()) for p in default_prompts(tmp_path, {"max_model_len": 20})] == [5, 12]
