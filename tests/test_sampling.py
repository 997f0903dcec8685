"""Which sampling parameters a prompts file may hold, and how others are refused before an engine starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tracereplay.errors import WorkloadError
from tracereplay.sampling import SAMPLING, as_engines_take_it, as_traces_keep_it
from tracereplay.workload import read_prompts


def read(tmp_path: Path, *lines: Any, **defaults: Any) -> list[dict[str, Any]]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return [dict(prompt.sampling) for prompt in read_prompts(path, defaults)]


def refused(tmp_path: Path, *lines: Any) -> str:
    with pytest.raises(WorkloadError) as raised:
        read(tmp_path, *lines)
    assert str(raised.value).count("\n") == 0
    return str(raised.value)


GOOD: dict[str, Any] = {
    "max_tokens": 4, "min_tokens": 0, "temperature": 0, "top_p": 0.9, "top_k": -1, "min_p": 0.1, "seed": -3,
    "n": 2, "logprobs": 0, "prompt_logprobs": 1, "presence_penalty": -2, "frequency_penalty": 1.5,
    "repetition_penalty": 1.1, "ignore_eos": True, "stop_token_ids": [3], "logit_bias": {"7": 100.0},
    "bad_words": ["no"], "stop": ["\n"], "skip_special_tokens": False, "spaces_between_special_tokens": True,
    "include_stop_str_in_output": True, "allowed_token_ids": [1, 2],
    "structured_outputs": {"regex": "[ab]+", "whitespace_pattern": " "},
    "lora": {"name": "mine", "path": "/a", "digest": "0", "rank": 8},
}  # fmt: skip


def test_every_parameter_is_kept(tmp_path: Path) -> None:
    assert set(GOOD) == set(SAMPLING)
    assert read(tmp_path, {"prompt": "a", **GOOD}) == [GOOD]
    assert read(tmp_path, {"prompt": "a"}, temperature=0.5) == [{"temperature": 0.5}]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", "NaN", "a number of at least 0"),
        ("temperature", "Infinity", "a number of at least 0"),
        ("temperature", "true", "a number of at least 0"),
        ("top_p", '"0.9"', "a number above 0"),
        ("top_p", "0", "a number above 0"),
        ("top_k", "-2", "-1 for all tokens"),
        ("min_p", "1.5", "from 0 to 1"),
        ("max_tokens", "0", "an integer of at least 1"),
        ("max_tokens", "2.5", "an integer of at least 1"),
        ("repetition_penalty", "0", "above 0"),
        ("presence_penalty", "3", "from -2 to 2"),
        ("ignore_eos", "1", "true or false"),
        ("stop_token_ids", "[-1]", "a list of token ids"),
        ("logit_bias", '{"a": 1}', "a number for each token id"),
        ("logit_bias", '{"7": NaN}', "a number for each token id"),
        ("logit_bias", "[7]", "a number for each token id"),
        ("bad_words", '[""]', "a list of words"),
        ("stop", "[3]", "a list of texts"),
        ("stop", '""', "a list of texts"),
        ("allowed_token_ids", '["a"]', "a list of token ids"),
        ("structured_outputs", "{}", "an object with one of json, regex"),
        ("structured_outputs", '"a+"', "an object with one of json, regex"),
        ("structured_outputs", '{"regex": "a", "choice": ["a"]}', "an object with one of json, regex"),
        ("structured_outputs", '{"regex": 7}', "an object with one of json, regex"),
        ("structured_outputs", '{"regex": "a", "backend": "x"}', "an object with one of json, regex"),
        ("seed", "1e3", "an integer"),
    ],
)
def test_a_value_that_no_engine_takes_is_refused_by_name(
    tmp_path: Path, name: str, value: str, expected: str
) -> None:
    said = refused(tmp_path, {"prompt": "fine"}, f'{{"prompt": "a", "{name}": {value}}}')
    assert said.startswith("Line 2 of ")
    assert f": {name} is " in said
    assert expected in said


def test_an_unknown_key_is_refused_with_what_it_may_have_meant(tmp_path: Path) -> None:
    assert "unknown key 'temprature'; did you mean temperature?" in refused(
        tmp_path, {"prompt": "a", "temprature": 1}
    )
    assert "known are" in refused(tmp_path, {"prompt": "a", "zzz": 1})


SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({"stop": ["\n", "a"]}, {"stop": ["\n", "a"]}),
        ({"stop": "\n"}, {"stop": ["\n"]}),
        ({"stop": None}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            {"structured_outputs": {"json": SCHEMA}},
        ),
        ({"structured_outputs": {"regex": "a"}}, {"structured_outputs": {"regex": "a"}}),
        ({"guided_choice": ["a", "b"]}, {"structured_outputs": {"choice": ["a", "b"]}}),
    ],
    ids=lambda value: next(iter(value), "nothing"),
)
def test_what_a_batch_request_asks_for_is_kept(
    tmp_path: Path, asked: dict[str, Any], kept: dict[str, Any]
) -> None:
    line = {"custom_id": "a", "body": {"model": "m", "prompt": "hi", "stream": True, **asked}}
    assert read(tmp_path, line) == [kept]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"echo": True}, "asks for echo, which cannot be recorded and replayed yet"),
        (
            {"thinking_token_budget": 3},
            "asks for thinking_token_budget, which cannot be recorded and replayed yet",
        ),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "asks for 2 grammars"),
        ({"response_format": {"type": "xml"}}, "must be of type text, json_object or json_schema"),
        ({"response_format": "json"}, "must be of type text, json_object or json_schema"),
    ],
)
def test_what_cannot_be_asked_for_again_is_refused_by_name(
    tmp_path: Path, asked: dict[str, Any], expected: str
) -> None:
    assert expected in refused(tmp_path, {"body": {"model": "m", "prompt": "hi", **asked}})


def test_batch_requests_to_an_adapter_are_refused(tmp_path: Path) -> None:
    lines = [{"body": {"model": model, "prompt": "hi"}} for model in ("m", "m", "my-adapter")]
    said = refused(tmp_path, *lines)
    assert said.startswith("Line 3 of ")
    assert "say where it is with --lora my-adapter=DIR" in said


def test_adapters_are_named_by_a_line_or_as_the_model_of_a_batch_request(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"prompt": "a", "lora": "mine"}, {"prompt": "a"}, {"body": {"model": "m", "prompt": "a"}},
        {"body": {"model": "mine", "prompt": "a"}},
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    mine = {"name": "mine", "path": "/a", "digest": "0", "rank": 8}
    assert [p.sampling.get("lora") for p in read_prompts(path, {}, {"mine": mine})] == [mine, None, None, mine]
    assert "asks for the adapter 'mine'; say where it is with --lora mine=DIR" in refused(tmp_path, lines[0])


def test_token_ids_are_numbers_for_engines_and_keys_in_traces() -> None:
    asked = {"logit_bias": {"7": 100, "12": -1.5}, "max_tokens": 2}
    taken = as_engines_take_it(asked)
    assert taken == {"logit_bias": {7: 100.0, 12: -1.5}, "max_tokens": 2}
    assert as_traces_keep_it(taken) == asked
    assert as_engines_take_it({"n": 1}) == as_traces_keep_it({"n": 1}) == {"n": 1}
