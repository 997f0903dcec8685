"""The first five lines: the verdict, its cause, where, how large beside what is allowed, and what to do next."""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tracereplay.comparator import Policy, compare_traces
from tracereplay.report import terminal
from tracereplay.report.effects import suspects
from tracereplay.report.layout import command_lines, report_console
from tracereplay.report.story import story_of
from tracereplay.verdict import SettingDifference, Tolerance, Verdict
from tracereplay.verdict.bisection import Bisection
from tracereplay.verdict.oracle import Oracle

LABELS = ("Cause", "Where", "How large", "Next")
SET = (("--set", "flaw=x"), ("--policy", "p.toml"))


def printed(verdict: Verdict, width: int = 80) -> list[str]:
    file = io.StringIO()
    terminal.render(verdict, Console(file=file, width=width), given=SET)
    return file.getvalue().splitlines()


def here(verdict: Verdict) -> Verdict:
    return replace(verdict, golden=replace(verdict.golden, trace="golden.trace"))


def test_each_verdict_begins_with_the_same_five_lines(verdicts: dict[str, Verdict]) -> None:
    for name, verdict in verdicts.items():
        first = printed(verdict, 200)
        assert first[0].startswith(verdict.verdict.upper()), name
        assert [line.partition("  ")[0] for line in first[1:5]] == list(LABELS), (name, first[:5])


@pytest.mark.parametrize(
    ("name", "cause", "where", "size"),
    [
        ("same", "nothing to blame", "176 of 176 operator calls and 24 greedy tokens compared",
         "no token differs"),
        ("rounding", "rounding in SiluAndMul, RotaryEmbedding, RMSNorm, Attention; no fault",
         "first seen at model.layers.0.mlp.act_fn; request 1, position 1",
         "no token differs; logprobs by 0.0379 (0.01 allowed)"),
        ("operator", "this operator: on golden's inputs its error is too large for rounding",
         "model.layers.1.input_layernorm; request 0, position 3",
         "up to 438% of the allowed error; 2 of 24 tokens differ"),
        ("edge", "between operators: all that run before it gave golden's results",
         "model.layers.1.post_attention_layernorm, input 1; request 1, position 2",
         "up to 141% of the allowed error; 1 of 24 tokens differ"),
        ("nan", "this operator: on golden's inputs it gives values that are not finite",
         "model.layers.1.mlp.down_proj; request 0, position 11",
         "3 values not finite (0.891 -> nan); 3 of 24 tokens differ"),
        ("setting", "dtype is float32 in golden, bfloat16 in the candidate", "request 2, position 3", "lean by"),
        ("structure", "only golden runs 9 operators", "model.norm, input 1", "143% of the allowed error"),
        ("unobserved", "something that was not recorded", "request 1, position 5: token 26 in golden, 50 in",
         "9 of 24 tokens differ (0 allowed); logprobs by 2.1 (0.01 allowed)"),
        ("weights", "any difference is one between two models", "176 of 176", "23 of 24 tokens differ"),
        ("unstable", "sites differ between two passes on the same inputs", "176 of 176", "% of the allowed error"),
        ("rerun", "an operator may have inherited", "first visible at model.layers.0.mlp.act_fn", "102% of the"),
    ],
)  # fmt: skip
def test_the_lines_say_what_happened(
    verdicts: dict[str, Verdict], name: str, cause: str, where: str, size: str
) -> None:
    story = story_of(verdicts[name])
    for part, words in ((cause, story.cause), (where, story.where), (size, story.size)):
        assert part in words


@pytest.mark.parametrize("name", ["same", "rounding", "operator", "nan"])
def test_the_first_lines_of_usual_verdicts_are_short(verdicts: dict[str, Verdict], name: str) -> None:
    story = story_of(verdicts[name])
    assert max(map(len, (story.what, story.cause, story.where, story.size))) <= 80 - 11


COMMANDS = {
    "operator": "bisect operators golden.trace --engine toy-1.0 --set flaw=x --policy p.toml",
    "recordings": "show golden.trace model.norm --step 0",
    "rounding": "bisect operators golden.trace --engine toy-1.0 --set flaw=x --policy p.toml",
    "edge": "bisect operators golden.trace --engine toy-2.0 --set flaw=x --policy p.toml",
    "unobserved": "bisect operators golden.trace --engine toy-2.0 --set flaw=x --policy p.toml",
    "structure": "bisect settings golden.trace --engine toy-2.0 --set flaw=x --policy p.toml",
    "rerun": "replay golden.trace --engine toy-1.0 --set flaw=x --policy p.toml",
    "setting": "replay golden.trace --engine toy-2.0 --set flaw=x --policy p.toml --set dtype=float32",
    "weights": "replay golden.trace --engine toy-2.0 --set flaw=x --policy p.toml --model DIR",
    "unstable": "invariance golden.trace --engine toy-2.0 --set flaw=x",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_next_command_is_exact(verdicts: dict[str, Verdict], name: str) -> None:
    found = story_of(here(verdicts[name]), SET).next
    assert " ".join(found.command) == f"tracereplay {COMMANDS[name]}"
    assert "the options" not in found.why


def test_options_that_are_not_known_are_asked_for(verdicts: dict[str, Verdict]) -> None:
    assert story_of(verdicts["rounding"]).next.why.endswith("add the options that the candidate was run with")


def test_a_setting_that_a_trace_may_not_ask_for_is_in_no_command(verdicts: dict[str, Verdict]) -> None:
    evil = SettingDifference("dtype", "float32; rm -rf /", "bfloat16", "numeric")
    found = story_of(replace(here(verdicts["setting"]), settings_diff=(evil,)), SET).next
    assert "rm -rf" not in " ".join(found.command)


ROUNDING = SettingDifference("rounding", "once", "truncate", "numeric")
REFUSED = SettingDifference("flaw", None, "x", "semantic")


def test_settings_that_the_verdict_lists_are_options_where_none_are_known(verdicts: dict[str, Verdict]) -> None:
    for name, verb in (("recordings", "show"), ("rerun", "replay"), ("rounding", "bisect settings")):
        found = story_of(replace(here(verdicts[name]), settings_diff=(ROUNDING, REFUSED))).next
        assert " ".join(found.command).startswith(f"tracereplay {verb} golden.trace")
        if verb != "show":
            assert found.command[-2:] == ("--set", "rounding=truncate")
            assert found.why.endswith("add the other options that the candidate was run with")


def test_a_comparison_says_to_add_options(verdicts: dict[str, Verdict]) -> None:
    visible = replace(here(verdicts["rerun"]), mode="compare")
    assert story_of(visible).next.why.endswith("add the options that the candidate was run with")


def test_a_setting_that_may_round_otherwise_is_tried_first(verdicts: dict[str, Verdict]) -> None:
    story = story_of(replace(here(verdicts["rounding"]), settings_diff=(ROUNDING,)), SET)
    assert story.next.command[1:3] == ("bisect", "settings")
    assert story.cause.endswith("no fault; it may come of rounding, set otherwise")
    version = SettingDifference("versions.torch", "1", "2", "numeric")
    assert (
        story_of(replace(here(verdicts["rounding"]), settings_diff=(version,)), SET).next.command[2] == "operators"
    )


def test_bits_that_differ_under_another_setting_have_it_tried(verdicts: dict[str, Verdict]) -> None:
    judged = verdicts["rounding"]
    strict = compare_traces(judged.golden.trace, judged.candidate.trace, Policy(strict=True))
    assert story_of(replace(strict, settings_diff=(ROUNDING,)), SET).next.command[1:3] == ("bisect", "settings")


def test_no_error_is_taken_out_of_whole_numbers(verdicts: dict[str, Verdict]) -> None:
    assert story_of(here(verdicts["sampler"]), SET).next.command[1:4] == ("show", "golden.trace", "sampler")
    bisected = replace(here(verdicts["sampler"]), bisection=Bisection("operators"))
    assert story_of(bisected, SET).next.command[1] == "show"


@pytest.mark.parametrize("name", ["rounding", "edge", "unobserved"])
def test_what_an_oracle_was_asked_for_is_not_bisected_again(verdicts: dict[str, Verdict], name: str) -> None:
    asked = replace(here(verdicts[name]), oracle=Oracle(same_inputs=True))
    assert story_of(asked, SET).next.command == ()
    bisected = replace(here(verdicts[name]), bisection=Bisection("operators"))
    assert story_of(bisected, SET).next.command[-1] == "--oracle"


def test_settings_that_restore_nothing_lead_to_operators(verdicts: dict[str, Verdict]) -> None:
    tried = replace(here(verdicts["rerun"]), bisection=Bisection("settings"))
    assert story_of(tried, SET).next.command[1:3] == ("bisect", "operators")


def test_what_a_bisection_found_can_be_pasted(verdicts: dict[str, Verdict]) -> None:
    arguments = '--set dtype="float32"', "no --set flaw", "env OMP_NUM_THREADS=1", "env -u B"
    found = replace(here(verdicts["setting"]), cause="edge", bisection=Bisection("settings", arguments=arguments))
    command = " ".join(story_of(found, SET).next.command)
    assert command.startswith("env -u B OMP_NUM_THREADS=1 tracereplay replay golden.trace --engine toy-2.0 ")
    assert command.endswith("--policy p.toml --set dtype=float32")
    assert "flaw" not in command


@pytest.mark.parametrize(
    ("operator", "command"),
    [
        ("RMSNorm", "repro golden.trace --site model.layers.1.input_layernorm --step 0 -o bug"),
        ("Attention", "replay golden.trace --engine toy-1.0 --policy p.toml --mode isolated --site "
                      "model.layers.1.input_layernorm"),
        ("Sampler", "bisect operators golden.trace --engine toy-1.0 --set flaw=x --policy p.toml"),
    ],
)  # fmt: skip
def test_what_can_be_run_by_itself_is(verdicts: dict[str, Verdict], operator: str, command: str) -> None:
    found = story_of(as_vllm(here(verdicts["operator"]), operator), SET).next
    assert " ".join(found.command) == f"tracereplay {command}"


def as_vllm(verdict: Verdict, operator: str) -> Verdict:
    """A verdict of the toy's as if it were of a family whose operators can be run by themselves."""
    assert verdict.first_divergence is not None
    return replace(
        verdict,
        golden=replace(verdict.golden, engine={**verdict.golden.engine, "family": "vllm"}),
        first_divergence=replace(verdict.first_divergence, operator=operator),
    )


def test_what_a_trace_says_is_quoted_in_a_command(verdicts: dict[str, Verdict]) -> None:
    verdict = as_vllm(here(verdicts["operator"]), "RMSNorm")
    assert verdict.first_divergence is not None
    evil = replace(verdict, first_divergence=replace(verdict.first_divergence, site="x; rm -rf ~\x1b[2J'$(id)"))
    text = "\n".join(printed(evil, 200))
    assert """--site 'x; rm -rf ~\\x1b[2J'"'"'$(id)'""" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("room", [20, 40, 69, 1000])
def test_a_command_can_be_pasted_whatever_the_width(room: int) -> None:
    words = "tracereplay", "replay", "a golden.trace", "--set", "x=1 2", "--strict", "-o", "bug"
    lines = command_lines(words, room)
    script = "\n".join(lines).replace("tracereplay", "printf '%s\\n'", 1)
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert tuple(said.splitlines()) == words[1:]
    assert room < 40 or max(map(len, lines)) <= room


def test_without_a_terminal_names_and_tables_are_as_wide_as_they_need(
    verdicts: dict[str, Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    long = "model." + "x" * 300 + ".norm"
    verdict = verdicts["operator"]
    assert verdict.first_divergence is not None
    verdict = replace(
        verdict,
        first_divergence=replace(verdict.first_divergence, site=long),
        operators=tuple(replace(o, site=long) for o in verdict.operators),
    )
    file = io.StringIO()
    terminal.render(verdict, report_console(file))
    assert f"Where      {long};" in file.getvalue()
    assert any(line.endswith(f"  {long}") for line in file.getvalue().splitlines())


@pytest.mark.parametrize(("asked", "width"), [("100", 100), ("", 100_000)])
def test_columns_says_how_wide_it_is(monkeypatch: pytest.MonkeyPatch, asked: str, width: int) -> None:
    monkeypatch.setenv("COLUMNS", asked)
    assert report_console(io.StringIO()).width == width


def test_a_name_that_nobody_would_read_is_cut_in_its_middle_at_a_terminal(
    verdicts: dict[str, Verdict],
) -> None:
    verdict = verdicts["operator"]
    assert verdict.first_divergence is not None
    long = "a" * 90_000
    verdict = replace(verdict, first_divergence=replace(verdict.first_divergence, site=long))
    file = io.StringIO()
    terminal.render(verdict, Console(file=file, width=80, force_terminal=True, no_color=True))
    assert len(file.getvalue()) < 20_000


def test_tokens_are_told_as_text_where_that_is_known(verdicts: dict[str, Verdict]) -> None:
    said = {26: "a", 50: "\n\x1b[2J\u202e"}
    story = story_of(verdicts["unobserved"], text=said.__getitem__)
    where = r"request 1, position 5: token 26 ('a') in golden, 50 ('\n\x1b[2J\u202e') in the candidate"
    assert story.where == where


def test_strict_says_that_bits_differ(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["operator"]
    assert verdict.first_divergence is not None
    first = replace(verdict.first_divergence, tolerance=Tolerance(0.0, 0.0, "bfloat16", "strict"))
    story = story_of(replace(verdict, first_divergence=first))
    assert story.cause == "this operator: on golden's inputs it does not give the same bits"
    assert story.size.startswith("bits differ (3.38 -> 3.06), none may; ")


def test_settings_that_can_explain_it_come_first_and_the_rest_is_folded() -> None:
    data = json.loads((Path(__file__).parents[2] / "fixtures" / "tiny-llama-v0-to-v1.json").read_text())
    verdict = Verdict.from_dict(data)
    ranked = suspects(verdict)
    assert [s.difference.name for s in ranked][:2] == ["custom_ops", "attention_backend"]
    assert ranked[0].touches == ("RMSNorm", "SiluAndMul", "RotaryEmbedding")
    assert sorted(s.difference.name for s in ranked) == sorted(d.name for d in verdict.settings_diff)
    text = "\n".join(printed(verdict))
    assert "and 25 more" in text
    for folded in ("versions.", "environment.", "async_scheduling"):
        assert folded not in text
    names = [line.split()[0] for line in printed(verdict, 200) if " -> " in line and line.startswith("  ")]
    assert names[1:5] == ["custom_ops", "attention_backend", "block_size", "logprobs_mode"]
