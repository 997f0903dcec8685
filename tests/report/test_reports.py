"""Reports read well at any width, and never hand a terminal what a trace's author wrote into a name."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from tracereplay.report import json as json_report
from tracereplay.report import terminal, words
from tracereplay.verdict import NotCompared, RoutingFinding, Verdict


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
        ("operator", "DIVERGED   RMSNorm computes something else", ["to allow it a = ", "exceeds"]),
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


def test_the_stated_token_and_logprob_limits_would_pass(verdicts: dict[str, Verdict]) -> None:
    tokens = verdicts["rounding"].tokens
    assert tokens.logprob_max
    line = next(
        line for line in printed(verdicts["rounding"], 120).splitlines() if "a policy that allows this" in line
    )
    stated = [float(part.split()[-1]) for part in line.split("allows this:")[1].replace("=", "").split(",")]
    assert stated[0] == tokens.differing
    assert tokens.logprob_max <= stated[1] <= tokens.logprob_max * 1.01
    assert "a policy that allows this" not in printed(verdicts["same"])


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
