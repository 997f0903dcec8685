"""Reports read well at any width, and never hand a terminal what a trace's author wrote into a name."""

from __future__ import annotations

import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tracereplay.comparator import Policy, compare_traces, load_policy
from tracereplay.report import json as json_report
from tracereplay.report import terminal, words
from tracereplay.verdict import Attribution, NotCompared, RoutingFinding, Verdict
from tracereplay.verdict.bisection import Bisection

FIXTURE = Path(__file__).parents[2] / "fixtures" / "tiny-llama-v0-to-v1.json"


def printed(verdict: Verdict, width: int = 80, *, everything: bool = False) -> str:
    file = io.StringIO()
    terminal.render(verdict, Console(file=file, width=width), everything=everything)
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_report_fits_its_terminal_and_cuts_nothing(verdicts: dict[str, Verdict], width: int) -> None:
    for name, made in verdicts.items():
        verdict = replace(made, golden=replace(made.golden, trace="golden.trace"))  # a command breaks no word
        for everything in (False, True):
            text = printed(verdict, width, everything=everything)
            assert max(map(len, text.splitlines())) <= width, name
            assert "\x1b" not in text, name  # plain where it is no terminal
            assert text.isascii(), name  # for terminals that know no more
        if width >= 80:
            assert len(printed(verdict, width).splitlines()) < 75, name


@pytest.mark.parametrize(
    ("name", "begin", "contained"),
    [
        ("same", "MATCH      the candidate computes golden's results, bit for bit", ["176 of 176 calls compared"]),
        ("rounding", "DIVERGED   the same tokens, but their logprobs differ", ["2.0 -> 1.0", "SiluAndMul"]),
        ("operator", "DIVERGED   RMSNorm computes something else", ["would take  at least a = ", "exceeds"]),
        ("edge", "DIVERGED   RMSNorm is given something else", ["Inputs that differ"]),
        ("nan", "DIVERGED   RowParallelLinear computes", ["nonfinite", "3 not finite"]),
        ("biased", "DIVERGED   MergedColumnParallelLinear", ["max_ulp = "]),
        ("weights", "INCONCLUSIVE  the two ran different weights", ["Settings that differ"]),
        ("recordings", "DIVERGED   RMSNorm computes something else", ["First visible divergence"]),
    ],
)
def test_the_report_begins_with_the_outcome(
    verdicts: dict[str, Verdict], name: str, begin: str, contained: list[str]
) -> None:
    text = printed(verdicts[name], 120)
    assert text.startswith(begin)
    for part in contained:
        assert part in text


def test_the_full_report_lists_every_site(verdicts: dict[str, Verdict]) -> None:
    text = printed(verdicts["rounding"], 160, everything=True)
    for operator in verdicts["rounding"].operators:
        assert operator.operator in text
    assert text.count("RMSNorm") >= 5


def test_control_characters_of_a_trace_are_escaped(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["operator"]
    assert verdict.first_divergence is not None
    evil = "model\x1b]0;owned\x07.\u202e\u200fnorm[bold]</script><script>alert(1)</script>\r\n" + "x" * 5000
    left = (NotCompared(evil, 1, f"because {evil}"),)
    differ = tuple(replace(d, name=evil, golden=evil) for d in verdict.settings_diff)
    verdict = replace(
        verdict,
        first_divergence=replace(verdict.first_divergence, site=evil),
        operators=tuple(replace(o, site=evil, operator=evil) for o in verdict.operators),
        notes=(evil,),
        reasons=(evil,),
        coverage=replace(verdict.coverage, not_compared=left),
        settings_diff=differ,
        golden=replace(verdict.golden, engine={"name": evil}),
    )
    text = printed(verdict, 120) + printed(verdict, 120, everything=True)
    assert not {"\x1b", "\x07", "\u202e", "\u200f", "\r"} & set(text)
    assert "[bold]" in text  # not taken for markup


def test_json_round_trips_the_verdict(verdicts: dict[str, Verdict]) -> None:
    for verdict in verdicts.values():
        text = json_report.render(verdict)
        assert text.endswith("}\n")
        assert Verdict.from_dict(json.loads(text)).as_dict() == verdict.as_dict()
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    ("share", "expected"), [(1.0, "100%"), (0.0, "0%"), (0.99999, "99.9%"), (1e-9, "0.1%"), (0.5, "50.0%")]
)
def test_only_exact_shares_are_shown_as_0_or_100_percent(share: float, expected: str) -> None:
    assert words.percent(share) == expected


def test_routing_flips_are_shown(verdicts: dict[str, Verdict]) -> None:
    found = (
        RoutingFinding("model.layers.0.mlp.experts", 40, 0, 0),
        RoutingFinding("model.layers.1.mlp.experts", 40, 2, 3),
    )
    text = printed(replace(verdicts["rounding"], routing=found))
    assert "Routing  rows that go to different experts than in golden" in text
    assert "model.layers.1.mlp.experts  40 rows  2 flips  3 near ties" in text
    assert "model.layers.0.mlp.experts" not in text
    assert "Routing" not in printed(verdicts["rounding"])


def test_the_stated_token_and_logprob_limits_pass(verdicts: dict[str, Verdict], tmp_path: Path) -> None:
    judged = verdicts["rounding"]
    lines = printed(judged, 120).splitlines()
    begin = next(n for n, line in enumerate(lines) if "a policy file that allows this" in line)
    policy = tmp_path / "policy.toml"
    policy.write_text("\n".join(line.strip() for line in lines[begin + 1 : begin + 3]))
    again = compare_traces(judged.golden.trace, judged.candidate.trace, load_policy(policy))
    assert (judged.verdict, again.verdict) == ("diverged", "match")


@pytest.mark.parametrize("name", ["same", "operator", "biased", "edge", "recordings", "unobserved"])
def test_no_policy_is_promised_where_more_is_out_of_tolerance(verdicts: dict[str, Verdict], name: str) -> None:
    text = printed(verdicts[name], 120)
    assert "a policy" not in text
    assert "to allow it" not in text


def test_a_strict_policy_contradicts_no_percentage(verdicts: dict[str, Verdict]) -> None:
    judged = verdicts["rounding"]
    text = printed(compare_traces(judged.golden.trace, judged.candidate.trace, Policy(strict=True)), 200)
    assert "% of the error that is allowed by default (element" in text
    assert "100% is what is allowed by default: here bits may not differ" in text


@pytest.mark.parametrize("name", ["same", "sampler", "weights"])
def test_percentages_are_explained_only_where_there_are_any(verdicts: dict[str, Verdict], name: str) -> None:
    text = printed(verdicts[name], 90)
    assert ("% is what is allowed" in text) == (
        re.search(r" \d+% |\d times", text.split("Operators")[1]) is not None
    )


def test_the_percentage_of_the_first_lines_is_that_of_the_table(verdicts: dict[str, Verdict]) -> None:
    text = printed(verdicts["operator"], 200)
    assert "How large  up to 438% of the allowed error; " in text
    assert re.search(r"RMSNorm .* exceeds +438% ", text)


def test_tokens_that_differ_have_no_bias_and_no_relative_error(verdicts: dict[str, Verdict]) -> None:
    for everything in (False, True):
        text = printed(verdicts["sampler"], 200, everything=everything)
        assert "bias" not in text
        assert "relative L2 0" not in text
        assert "too large for rounding" not in text
        assert "on golden's inputs it gives other tokens" in text


def test_what_was_not_compared_is_not_said_to_be_equal(verdicts: dict[str, Verdict]) -> None:
    judged = verdicts["operator"]
    operators = tuple(replace(o, error_class="incomparable") for o in judged.operators)
    text = printed(replace(judged, operators=operators), 200, everything=True)
    table = text.partition("Operators")[2].partition("Inputs that differ")[0].partition("Coverage")[0]
    assert "incomparable" in table
    assert "100%" not in table.replace("100% is what", "")


@pytest.mark.parametrize("name", ["same", "weights"])
def test_all_beside_labels_begins_in_one_column(verdicts: dict[str, Verdict], name: str) -> None:
    lines = printed(verdicts[name], 200).splitlines()
    width = len(lines[0]) - len(lines[0].partition("  ")[2].lstrip())
    labels = ("Cause", "Where", "How large", "Next", "golden ", "candidate")
    told = [line for line in lines[:9] if line.startswith(labels)]
    assert len(told) == len(labels)
    assert all(line[width - 1] == " " and line[width] != " " for line in told)


def test_the_command_for_more_can_be_pasted() -> None:
    file = io.StringIO()
    command = "tracereplay", "compare", "a/long/golden.trace", "a/long/candidate.trace", "--all"
    verdict = Verdict.from_dict(json.loads(FIXTURE.read_text()))
    terminal.render(verdict, Console(file=file, width=50), whole=command)
    told = file.getvalue().partition("More       ")[2]
    assert "\n" in told.strip()
    assert tuple(shlex.split(told.replace("\\\n", " "))) == command


def test_a_trace_compared_with_itself_is_said_to_be_the_same(verdicts: dict[str, Verdict]) -> None:
    golden = verdicts["same"].golden
    text = printed(compare_traces(golden.trace, golden.trace), 120)
    assert text.startswith("MATCH      golden and the candidate are the same trace")
    assert f"both have the digest {golden.digest}" in text
    assert "same trace" not in printed(verdicts["same"], 120)


def test_shares_that_nothing_is_known_of_are_a_dash(verdicts: dict[str, Verdict]) -> None:
    nan = float("nan")
    part = Attribution(("all",), nan, (nan, nan), "logprob_sq_diff.mean", "all", restores=False)
    found = replace(verdicts["sampler"], bisection=Bisection("operators"), attribution=(part,))
    assert "- to -" not in printed(found, 120)


def test_how_operators_were_paired_is_told_once_for_each_kind_and_in_full_on_request(
    verdicts: dict[str, Verdict],
) -> None:
    told = printed(verdicts["paired"], 200)
    assert "model.embed_tokens is decoder.embed_in (tensors; 6 more)" in told
    assert ".qkv_proj joins decoder.blocks.0.attention.query | key | value (tensors; 3 more)" in told
    everything = printed(verdicts["paired"], 200, everything=True)
    assert "model.norm with its residual is decoder.final_norm (tensors)" in everything
    assert "model.layers.1.self_attn.attn is decoder.blocks.1.attention.core (shape)" in everything
    assert "Paired" not in printed(verdicts["rounding"], 120)
