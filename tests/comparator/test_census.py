"""What follows from modules that compute unobserved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tracereplay.comparator import Policy, compare_traces
from tracereplay.engines import toy
from tracereplay.engines.toy import Flaw
from tracereplay.report import terminal
from tracereplay.trace import SegmentWriter
from tracereplay.verdict import Source, Verdict

ODD = ["model.layers.1.odd", "Odd", 3, 12]
LOOSE = Policy(logprob_max_abs=1.0, differing_tokens=24)
Judged = Callable[..., Verdict]


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judged:
    """Records the toy and replays it, in which ``unobserved`` modules are counted in every step."""

    def counted(unobserved: list[Any], policy: Policy | None = None, **options: Any) -> Verdict:
        write = SegmentWriter.step

        def step(*args: Any, **kwargs: Any) -> None:
            census: Mapping[str, Any] = {
                "operators": 20, "calls": 40, "unobserved": unobserved, "between": [], "parameters": [],
            }  # fmt: skip
            write(*args, **kwargs, census=census)

        monkeypatch.setattr(SegmentWriter, "step", step)
        golden = toy.record(toy.workload(max_tokens=5), tmp_path / "golden.trace")
        return compare_traces(golden, toy.replay(golden, tmp_path / "candidate.trace", **options), policy)

    return counted


def test_a_module_that_computes_unobserved_leaves_rounding_inconclusive(judged: Judged) -> None:
    verdict = judged([ODD], LOOSE, rounding="twice")
    assert (verdict.verdict, verdict.cause, verdict.exit_code) == ("inconclusive", "unobserved", 3)
    assert "model.layers.1.odd (Odd)" in verdict.reasons[0]
    told = verdict.as_dict()["coverage"]["census"]
    assert told["golden"]["unobserved"] == [
        {"module": "model.layers.1.odd", "class": "Odd", "calls": 3, "computed": 12}
    ]
    assert told["candidate"]["observed"] == {"operators": 20, "calls": 40}
    assert Verdict.from_dict(verdict.as_dict()) == verdict


def test_tokens_and_logprobs_that_agree_to_the_bit_show_that_nothing_in_it_differs(judged: Judged) -> None:
    verdict = judged([ODD])
    assert (verdict.verdict, verdict.cause) == ("match", None)
    assert [row.module for row in verdict.coverage.census.unobserved] == ["model.layers.1.odd"]


def test_without_such_a_module_rounding_matches(judged: Judged) -> None:
    assert judged([], LOOSE, rounding="twice").verdict == "match"


def test_an_operator_that_diverges_is_blamed_all_the_same(judged: Judged) -> None:
    verdict = judged([ODD], flaw=Flaw("model.norm", "scale"))
    assert (verdict.verdict, verdict.cause) == ("diverged", "operator")


def test_no_census_changes_nothing_and_is_said() -> None:
    told = Verdict.from_dict(_verdict().as_dict()).as_dict()["coverage"]["census"]
    assert told == "unavailable"


def test_a_report_names_what_computes_unobserved(judged: Judged) -> None:
    console = Console(record=True, width=100)
    terminal.render(judged([ODD], LOOSE, rounding="twice"), console)
    assert "Unobserved: model.layers.1.odd (Odd) computes in 3 calls" in console.export_text()


def _verdict() -> Verdict:
    source = Source({"name": "toy"}, "", None)
    return Verdict("match", "compare", None, (), source, source)
