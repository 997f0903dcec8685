"""A recording without tokens: nothing in it says which they were, and what needs them refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import forms, write
from program import Program

from tracereplay.trace import Trace, open_trace
from tracereplay.trace.reader import SegmentReader

PLANTED = [101, 37, 113, 94, 88, 61, 119]  # in no order, and nowhere else
TEXT = "zqxj"  # a prompt given as text; the toy's tokens are its bytes
STOP = "WITHHOLD THIS STOP"


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    lines = [{"prompt_token_ids": PLANTED, "max_tokens": 6}, {"prompt": TEXT, "max_tokens": 5}]
    return write(tmp_path / "planted.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))


def record(tracereplay: Program, model: Path, prompts: Path, out: Path, *words: object) -> Path:
    given = ("--engine", "toy", "--model", model, "--prompts", prompts, "-o", out, "--logprobs", 1)
    ended = tracereplay("record", *given, *words)
    assert ended.code == 0, ended.err
    return out


def decoded(path: Path) -> Iterator[bytes]:
    """All that a trace says: its files as they are, and each frame decompressed."""
    for file in path.iterdir():
        yield file.read_bytes()
        if file.suffix == ".seg":
            yield from (bytes(data) for _, _, data in SegmentReader(file).frames() if data is not None)


def runs(tokens: list[int], length: int = 5) -> list[list[int]]:
    return [tokens[i : i + length] for i in range(len(tokens) - length + 1)]


def generated(trace: Trace) -> list[list[int]]:
    return [result["token_ids"] for result in trace.results["record"]["requests"]]


def test_no_form_of_a_token_is_anywhere(tracereplay: Program, model: Path, planted: Path, tmp_path: Path) -> None:
    plain = record(tracereplay, model, planted, tmp_path / "plain.trace")
    closed = record(tracereplay, model, planted, tmp_path / "closed.trace", "--withhold", "tokens")
    with open_trace(plain) as trace:
        answers = generated(trace)
    sequences = [PLANTED + answers[0], list(TEXT.encode()) + answers[1]]
    said = {path: list(decoded(path)) for path in (plain, closed)}
    seen = set()
    for tokens in (run for sequence in sequences for run in runs(sequence)):
        for form, data in forms(tokens).items():
            if any(data in part for part in said[plain]):
                seen.add(form)
            assert not any(data in part for part in said[closed]), (form, tokens)
    assert {"int64", "msgpack", "JSON"} <= seen  # they would have been found
    assert any(TEXT.encode() in part for part in said[plain])
    assert not any(TEXT.encode() in part for part in said[closed])


def test_no_single_token_of_a_step_is_kept(
    tracereplay: Program, model: Path, planted: Path, tmp_path: Path
) -> None:
    closed = record(tracereplay, model, planted, tmp_path / "closed.trace", "--withhold", "tokens")
    with open_trace(closed) as trace:
        sampled = [one for step in trace.steps("record") for one in step.sampled]
        assert sampled
        assert all(one.token > 1 << 32 and one.choice > 1 << 32 and one.logprob is None for one in sampled)
        assert all(token > 1 << 32 for prompt in trace.run.prompts for token in prompt.token_ids or ())
        assert [prompt.text for prompt in trace.run.prompts] == [None, None]
        answers = generated(trace)
        keys = {(r["request"], r["sequence"]): r for r in trace.results["record"]["requests"]}
        lengths = [len(prompt.token_ids or ()) for prompt in trace.run.prompts]
        for one in sampled:  # the same digests wherever a token stands
            result = keys[one.key.request, one.key.sequence]
            assert result["token_ids"][one.key.position - lengths[one.key.request]] == one.token
            assert result["logprobs"] is None
        assert len({token for answer in answers for token in answer}) == sum(map(len, answers))


def test_only_later_layers_are_kept(tracereplay: Program, model: Path, planted: Path, tmp_path: Path) -> None:
    closed = record(tracereplay, model, planted, tmp_path / "closed.trace", "--withhold", "tokens")
    with open_trace(closed) as trace:
        called = {call.site for step in trace.steps("record") for call in step.calls}
    assert called
    assert all(re.match(r"model\.layers\.[1-9]", site) for site in called), called


def test_show_says_so_and_replay_refuses(tracereplay: Program, model: Path, planted: Path, tmp_path: Path) -> None:
    closed = record(tracereplay, model, planted, tmp_path / "closed.trace", "--withhold", "tokens")
    shown = tracereplay("show", closed)
    assert shown.code == 0
    assert re.search(r"withheld +tokens \(key [0-9a-f]{16}\)", shown.out)
    ended = tracereplay("replay", closed, "--engine", "toy", "-o", tmp_path / "c.trace")
    assert ended.code == 2
    assert "was recorded without its tokens (--withhold tokens), so it cannot be generated again" in ended.err
    assert ended.err.count("\n") == 1


def test_traces_of_one_key_are_compared(tracereplay: Program, model: Path, planted: Path, tmp_path: Path) -> None:
    key = ("--withhold", "tokens", "--withhold-key", tmp_path / "key")
    one = record(tracereplay, model, planted, tmp_path / "one.trace", *key)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    other = record(tracereplay, model, planted, tmp_path / "other.trace", *key)
    assert tracereplay("compare", one, other).code == 0
    wrong = tracereplay("record", "--engine", "toy", "--model", model, "--prompts", planted, "-o",
                        tmp_path / "wrong.trace", *key, "--set", "rounding=truncate")  # fmt: skip
    assert wrong.code == 0, wrong.err
    ended = tracereplay("compare", one, tmp_path / "wrong.trace", "--json", "-", "--strict")
    assert ended.code == 1
    assert ended.verdict["operators"]


def test_traces_of_different_keys_are_not(
    tracereplay: Program, model: Path, planted: Path, tmp_path: Path
) -> None:
    one = record(tracereplay, model, planted, tmp_path / "one.trace", "--withhold", "tokens")
    other = record(tracereplay, model, planted, tmp_path / "other.trace", "--withhold", "tokens")
    plain = record(tracereplay, model, planted, tmp_path / "plain.trace")
    for candidate in (other, plain):
        ended = tracereplay("compare", one, candidate)
        assert ended.code == 2
        assert "record both with the same --withhold-key FILE" in ended.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--withhold", "tokens", "--level", "kernel"], "leave out --level kernel"),
        (["--withhold-key", "k"], "give that too, or leave it out"),
        (["--withhold", "tokens", "--withhold-key", "nowhere/k"], "cannot be read or made"),
    ],
)
def test_what_cannot_be_withheld_is_said_first(
    tracereplay: Program, model: Path, planted: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    given = ("--engine", "toy", "--model", model, "--prompts", planted, "-o", tmp_path / "t.trace")
    ended = tracereplay("record", *given, *words)
    assert (ended.code, says in ended.err) == (2, True), ended.err
    assert not (tmp_path / "t.trace").exists()


def test_tokens_are_withheld_from_a_trace_that_has_them(
    tracereplay: Program, model: Path, planted: Path, tmp_path: Path
) -> None:
    key = ("--withhold", "tokens", "--withhold-key", tmp_path / "key")
    plain = record(tracereplay, model, planted, tmp_path / "plain.trace")
    closed = record(tracereplay, model, planted, tmp_path / "closed.trace", *key)
    out = tmp_path / "packed.trz"
    ended = tracereplay("pack", plain, "-o", out, *key)
    assert ended.code == 0, ended.err
    ended = tracereplay("compare", closed, out, "--strict")
    assert ended.code == 0, ended.out + ended.err
    with open_trace(plain) as trace, open_trace(closed) as known, open_trace(out) as made:
        assert made.complete
        assert made.run.prompts == known.run.prompts
        assert generated(made) == generated(known)
        said = [json.dumps(made.manifest).encode()]
        said += [bytes(data) for _, _, data in made.part(("record", 0)).frames() if data is not None]
        for tokens in runs([*PLANTED, *generated(trace)[0]]):
            assert not any(form in part for form in forms(tokens).values() for part in said)
    assert tracereplay("pack", closed, "-o", tmp_path / "again.trz", *key).code == 2
    assert tracereplay("pack", plain, "-o", tmp_path / "again.trz", *key, "--level", 3).code == 2
