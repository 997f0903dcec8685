"""What came of checks in each form, read back by a parser of that form."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import xmlschema
from junitparser import Error, Failure, JUnitXml
from rich.console import Console

from tracereplay.checks.results import Result, Results
from tracereplay.checks.table import Check
from tracereplay.report.checks import github, junit, machine, markdown, table
from tracereplay.verdict import Source, Verdict

# What somebody may have called a site, an engine or a row.
HOSTILE = '<script>x</script>|`a`]]> @team #1 %0A::error::\x1b[31m\u202e\ud800\x00 http://e.vil **b** & "q", a:b'
SIDE = Source({"name": "v1"}, "", None)


def verdict(outcome: str, cause: str | None, *reasons: str) -> Verdict:
    return Verdict(outcome, "injected", cause, reasons, SIDE, SIDE)  # type: ignore[arg-type]


def results(name: str = "row", path: Path = Path("checks.toml")) -> Results:
    """One of each kind; the first is as expected."""
    return Results(
        path,
        (
            Result(Check(f"{name} 1", "a.pack", "v1"), 0, 1.25, verdict("match", None)),
            Result(
                Check(f"{name} 2", "a.pack", name, line=5),
                1,
                2.0,
                verdict("diverged", "rounding", f"Why: {name}."),
            ),
            Result(Check(f"{name} 3", "a.pack", "v1"), 3, 0.5, verdict("inconclusive", None, f"Other: {name}.")),
            Result(Check(f"{name} 4", "a.pack", "v1"), 4, 9.0, error=f"Failed: {name}.", last_lines=f"x\n{name}"),
            Result(Check(f"{name} 5", "a.pack", "v1", expect="diverged"), 1, 1.0, verdict("match", None)),
        ),
    )


def shown(found: Results) -> str:
    text = StringIO()
    table.render(found, Console(file=text, highlight=False, color_system=None, width=80))
    return text.getvalue()


def test_the_table_says_each_row_and_explains_what_is_unexpected() -> None:
    text = shown(results())
    rows = [line.split() for line in text.splitlines()[:6]]
    assert rows[0] == ["check", "engine", "verdict", "expected", "time"]
    assert rows[1] == ["row", "1", "v1", "match", "match", "ok", "1", "s"]
    assert rows[2][3:] == ["row", "2", "diverged", "(rounding)", "match", "NOT", "OK", "2", "s"][2:]
    assert "\n  cause: " in text
    assert "\n  diverged was expected: the candidate computes" in text
    assert "\n  | x\n" in text
    assert "\n  Next: tracereplay replay a.pack --engine row\n" in text
    assert text.endswith("5 checks: 4 not as expected, 14 s\n")


def test_what_strangers_wrote_does_not_reach_a_terminal_as_it_is() -> None:
    assert not re.search(r"[\x1b\u202e\x00]", shown(results(HOSTILE)))


def test_what_strangers_wrote_is_no_command_to_a_runner_that_reads_the_log() -> None:
    row = Check("a", "a.pack", "v1")
    reasons = "::add-mask::x", "Two.", " ::error::y", "##[group]z"
    text = shown(Results(Path("c.toml"), (Result(row, 3, 0.0, verdict("inconclusive", None, *reasons)),)))
    assert not re.search(r"^\s*::|##\[", text, re.MULTILINE)
    assert ": :add-mask::x" in text


def test_nothing_is_cut_in_a_table_that_no_terminal_shows() -> None:
    name = "a-very-long-name-" * 20
    assert f"{name} 1" in shown(results(name))


def test_json_holds_the_whole_verdict() -> None:
    found = json.loads(machine.render(results()))
    assert (found["schema"], found["exit_code"], len(found["checks"])) == (1, 4, 5)
    second = found["checks"][1]
    assert (second["outcome"], second["met"], second["exit_code"]) == ("diverged", False, 1)
    assert Verdict.from_dict(second["verdict"]) == results().results[1].verdict
    assert found["checks"][3]["verdict"] is None


@pytest.mark.parametrize("name", ["row", HOSTILE])
def test_junit_has_a_case_a_row(name: str) -> None:
    suite = next(iter(JUnitXml.fromstring(junit.render(results(name)).encode())))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (5, 2, 2, 0)
    kinds = [[type(result) for result in case.result] for case in suite]
    assert kinds == [[], [Failure], [Error], [Error], [Failure]]
    case = list(suite)[1]
    assert case.time == 2.0
    assert case.result[0].type == "diverged (rounding)"
    assert "Next: tracereplay replay" in case.result[0].text


class _Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_markdown_shows_what_strangers_wrote_as_text() -> None:
    text = markdown.render(results(HOSTILE))
    parser = _Seen()
    parser.feed(text)
    assert parser.tags == {"code", "details", "summary"}
    assert any("<script>x</script>|`a`]]> @team" in words for words in parser.texts)
    assert not re.search(r"[@\x1b\u202e]|https?:", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {7}


def test_markdown_is_short_enough_for_a_comment() -> None:
    assert len(markdown.render(results())) < 3_000
    many = Results(Path("c.toml"), results(HOSTILE * 50).results * 1_000)
    text = markdown.render(many)
    assert len(text.encode()) < 65_536
    assert "and 4960 more" in text


def test_annotations_stand_at_the_row_and_cannot_be_broken_out_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    text = github.render(results(HOSTILE, tmp_path / "ci" / "checks.toml"))
    lines = text.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["::error"] * 4 + ["::notice"]
    head, message = re.fullmatch(r"::error ([^\n]*?)::(.*)", lines[0]).groups()  # type: ignore[union-attr]
    properties = dict(part.split("=", 1) for part in head.split(","))
    assert (properties["file"], properties["line"]) == ("ci/checks.toml", "5")
    assert "%3A%3Aerror%3A%3A" in properties["title"]
    assert "%0A" in message
    assert "%250A" in message
    assert lines[-1] == "::notice title=tracereplay::5 checks: 4 not as expected"


def test_junit_is_what_its_schema_describes() -> None:
    """The schema of Jenkins' xUnit plugin, in the copy that pytest's sources carry (MIT; see the file)."""
    schema = xmlschema.XMLSchema(str(Path(__file__).parent / "junit-10.xsd"))
    for found in (results(), results(HOSTILE), Results(Path("none.toml"), ())):
        schema.validate(junit.render(found))
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        schema.validate(junit.render(results()).replace("classname=", "klass="))
