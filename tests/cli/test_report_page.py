"""``tracereplay report -o``: a page of a verdict or of two traces, whatever the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import Program

from tracereplay.engines import toy
from tracereplay.engines.toy import Flaw


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    path = tmp_path_factory.mktemp("report")
    golden = toy.record(toy.workload(), path / "golden.trace")
    return golden, toy.replay(golden, path / "candidate.trace", flaw=Flaw("model.norm", "scale"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


def test_two_traces_make_a_page_and_exit_with_zero(
    run: Program, traces: tuple[Path, Path], tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    ended = run("report", *traces, "-o", page)
    assert (ended.code, ended.out, ended.err) == (0, "", f"The report is in {page}.\n")
    assert 'id="map-data"' in page.read_text()
    assert run("report", *traces, "-o", page).code == 0  # replaced by another


def test_a_verdict_makes_a_page_and_without_o_the_terminal_shows_it(
    run: Program, traces: tuple[Path, Path], tmp_path: Path
) -> None:
    verdict, page = tmp_path / "verdict.json", tmp_path / "report.html"
    assert run("compare", *traces, "--json", verdict).code == 1
    assert run("report", verdict, "-o", page).code == 0
    assert f"tracereplay report {traces[0]} {traces[1]} -o report.html" in page.read_text()
    saved, compared = (run("report", *words).out.splitlines()[:-1] for words in ((verdict,), traces))
    assert saved == compared != []  # but for the last line, the command that shows all


def test_another_file_is_not_replaced(run: Program, traces: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "notes.html"
    other.write_text("<h1>mine</h1>")
    ended = run("report", *traces, "-o", other)
    assert (ended.code, "is not a page written by report -o" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--strict",), "A verdict was judged, and its traces are not read; leave out --strict."),
        (("--model", "here"), "leave out --model."),
        (("-o", "r.html", "--all"), "A page written by -o shows everything; leave out --all."),
        (("-o", "https://example.org/r.html"), "give a local path"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    run: Program, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    ended = run("report", tmp_path / "verdict.json", *words)
    assert (ended.code, said in ended.err) == (2, True), ended.err


def test_what_is_no_verdict_is_refused_in_a_sentence(run: Program, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text('{"schema": 1, "verdict": "match"}')
    ended = run("report", tmp_path / "odd.json", "-o", tmp_path / "r.html")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
