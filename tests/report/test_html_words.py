"""A page denies nothing of its verdict: what is not equal, what could not be compared, whose prompt it was."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from rich.console import Console

from tracereplay.census import Census
from tracereplay.comparator import compare_traces
from tracereplay.comparator.details import Details
from tracereplay.engines import toy
from tracereplay.engines.toy import Flaw
from tracereplay.report import findings, html
from tracereplay.verdict import Metrics
from tracereplay.verdict.census import CensusFinding

PROMPTS: Sequence[Sequence[int]] = [[5, 6, 7, 8, 9], [20, 21, 22], [5, 6, 7, 40]]
NOTHING = "Nothing differs in any of them."


class Made:
    """A page, and what it was made from."""

    def __init__(self, golden: Path, candidate: Path) -> None:
        self.details = Details()
        self.verdict = compare_traces(golden, candidate, details=self.details)
        self.text = html.render(self.verdict, self.details, limit=0.05)

    def section(self, name: str) -> str:
        found = re.search(f'<section id="{name}".*?</section>', self.text, re.DOTALL)
        return "" if found is None else found[0]


def tables(part: str) -> list[tuple[list[str], list[list[str]]]]:
    """Headers and rows of each table; a cell over several columns counts as many."""
    found = []
    for table in re.findall(r"<table.*?</table>", part, re.DOTALL):
        lines = []
        for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL):
            line: list[str] = []
            for wide, cell in re.findall(r'<t[hd][^>]*?(?:colspan="(\d)")?>(.*?)</t[hd]>', row, re.DOTALL):
                line += [words(cell)] * int(wide or 1)
            lines.append(line)
        found.append((lines[0], lines[1:]))
    return found


def words(part: str) -> str:
    return " ".join(unescape(re.sub("<[^>]+>", " ", part)).split())


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.record(toy.workload(PROMPTS, max_tokens=24), tmp_path_factory.mktemp("words") / "golden")


@pytest.fixture(scope="module")
def strangers(golden: Path) -> Made:
    """The candidate's only request has another prompt."""
    return Made(golden, toy.record(toy.workload([[9, 8, 7, 6]], max_tokens=24), golden.parent / "strangers"))


@pytest.fixture(scope="module")
def sampler(golden: Path) -> Made:
    """Only integers differ."""
    return Made(golden, toy.replay(golden, golden.parent / "sampler", flaw=Flaw("sampler", "second")))


@pytest.fixture(scope="module")
def late(golden: Path) -> Made:
    """The first token that differs is in the last request, and others differ in the first."""
    flaw = Flaw("model.layers.1.input_layernorm", "eps")
    return Made(golden, toy.replay(golden, golden.parent / "late", rounding="twice", flaw=flaw))


@pytest.fixture(scope="module")
def same(golden: Path) -> Made:
    return Made(golden, toy.replay(golden, golden.parent / "same"))


def test_nothing_differs_only_where_nothing_does(sampler: Made, strangers: Made, same: Made) -> None:
    assert NOTHING in same.section("operators")
    assert NOTHING not in sampler.section("operators")
    assert NOTHING not in strangers.section("operators")
    assert "22 of 22 operators could not be compared; nothing is known of their errors." in words(
        strangers.section("operators")
    )


def test_what_was_not_compared_has_no_figures(strangers: Made) -> None:
    kinds, sites, inputs = tables(strangers.section("operators"))
    assert kinds[0] == ["class", "operator", "differ"]
    assert ["incomparable", "RMSNorm", "none of 5 compared"] in kinds[1]
    assert sites[0] == ["class", "site", "operator", "rows", "why not"]
    assert {row[-1] for row in sites[1]} == {"none of its rows could be compared"}
    assert inputs[0] == ["class", "into", "input", "why not"]
    assert "34 of 34 inputs not compared" in words(strangers.section("operators"))


def test_some_of_a_class_may_not_be_compared(late: Made) -> None:
    operators = list(late.verdict.operators)
    norms = [n for n, o in enumerate(operators) if o.operator == "RMSNorm"]
    lost = operators[norms[0]]
    operators[norms[0]] = replace(lost, error_class="incomparable", rows=0, metrics=Metrics(), reason="none")
    verdict = replace(late.verdict, operators=tuple(operators))
    made = html.render(verdict, late.details)
    kinds, sites = tables(re.findall('<section id="operators".*?</section>', made, re.DOTALL)[0])[:2]
    (row,) = [row for row in kinds[1] if row[1] == "RMSNorm"]
    assert row[:4] == ["exceeds", "RMSNorm", "4 of 5, 1 not compared", "model.layers.1.input_layernorm"]
    assert all(len(row) == len(kinds[0]) for row in kinds[1])
    assert all(len(row) == len(sites[0]) for row in sites[1])
    assert "1 of 22 operators could not be compared." in words(made)
    out = io.StringIO()
    findings.render(verdict, Console(file=out, width=160))
    (line,) = [line for line in out.getvalue().splitlines() if line.strip().startswith("RMSNorm")]
    assert "4 of 5" in line


def test_the_terminal_has_no_figures_of_them_either(strangers: Made) -> None:
    out = io.StringIO()
    findings.render(strangers.verdict, Console(file=out, width=160), everything=True)
    rows = [line for line in out.getvalue().splitlines() if "incomparable" in line]
    assert len(rows) > 22
    assert not any("%" in row for row in rows)


def test_integers_are_equal_or_not(sampler: Made) -> None:
    kinds, sites = tables(sampler.section("operators"))[:2]
    assert "relative L2" not in kinds[0]
    assert sites[0] == ["class", "site", "operator", "rows", "error"]
    assert sites[1][-1][-1] == "not equal"
    first = words(sampler.section("first"))
    assert "none: integers are equal or not" in first
    assert not {"bias", "ulp", "L2"} & set(re.findall(r"\w+", first))


def test_a_column_has_something_in_it(late: Made, sampler: Made, strangers: Made, same: Made) -> None:
    for made in (late, sampler, strangers, same):
        for header, rows in tables(made.text):
            assert all(len(row) == len(header) for row in rows), header
            for n, name in enumerate(header):
                assert any(row[n] for row in rows), name
    assert tables(same.section("operators"))[0][0] == ["class", "operator", "differ", "equal"]


def test_both_prompts_are_shown_where_they_differ(strangers: Made) -> None:
    tokens = words(strangers.section("tokens"))
    assert (
        "Request 0: each side has its own prompt prompt in golden 5 6 7 8 9 prompt in the candidate 9 8 7 6"
        in (tokens)
    )
    assert "Request 1: nothing to compare in the candidate" in tokens
    assert "parts at position" not in tokens
    assert strangers.details.generated is not None
    generated = strangers.details.generated.candidate.tokens[0, 0][4:]
    (shown,) = re.findall(r'candidate\'s tokens of request 0">(.*?)</pre>', unescape(strangers.text), re.DOTALL)
    assert words(shown) == " ".join(map(str, generated))


def test_the_request_of_the_first_token_that_differs_is_open(late: Made) -> None:
    first = late.verdict.tokens.first_divergence
    assert first is not None
    assert first.request == 2
    pairs = re.findall(r'<details class="pair"( open)?>\s*<summary>(.*?)</summary>', late.text)
    assert pairs[0] == (" open", f"Request 2: parts at position {first.position}")
    assert [summary.split(":")[0] for _, summary in pairs] == ["Request 2", "Request 0", "Request 1"]
    assert [is_open for is_open, _ in pairs[1:]] == ["", ""]


def test_what_is_allowed_stands_in_the_legend_and_not_below_a_curve(late: Made) -> None:
    tokens = late.section("tokens")
    assert 'class="limit"' in tokens
    assert "allowed" not in "".join(re.findall(r"<svg.*?</svg>", tokens, re.DOTALL))
    assert "largest mean allowed: 0.05" in words("".join(re.findall(r"<ul.*?</ul>", tokens, re.DOTALL)))


def test_a_fallback_is_hidden_until_drawing_has_failed(late: Made) -> None:
    assert re.search(r'<p id="map-fallback" class="note" hidden>', late.text)
    assert re.search(r"<noscript><p class=\"note\">.*?</p></noscript>", late.text)


def test_a_census_that_nobody_took_has_no_section(late: Made) -> None:
    assert 'href="#census"' not in late.text
    assert late.section("census") == ""
    assert "Of neither side was a census taken" in late.section("left")
    coverage = replace(late.verdict.coverage, census=CensusFinding(Census(5, 9, (), (), ())))
    taken = html.render(replace(late.verdict, coverage=coverage))
    assert 'href="#census"' in taken
    assert "candidate: no census was taken." in taken
    assert "Of neither side" not in taken


def test_the_allowance_has_its_numbers(late: Made, same: Made) -> None:
    assert "may be off by eps(bfloat16) * (3 |golden| + 3 RMS of its row), default." in words(late.text)
    assert "(a |golden| + b RMS" not in late.text
    assert "may be off" not in same.text
