"""What reasons say of the first divergence."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tracereplay.comparator import compare_traces
from tracereplay.comparator.judging.reasons import does
from tracereplay.engines import toy
from tracereplay.engines.toy import Flaw
from tracereplay.verdict import Metrics
from tracereplay.verdict.measures import Worst


def metrics(golden: float, candidate: float) -> Metrics:
    return Metrics(nonfinite=1, worst=Worst(0, 0, 5, 3, golden, candidate))


@pytest.mark.parametrize(
    ("golden", "candidate", "said"),
    [
        (1.0, math.nan, "is not finite where golden is"),
        (math.nan, 1.0, "is finite where golden is not"),
        (math.inf, math.nan, "is nan where golden is inf"),
        (-math.inf, math.inf, "is inf where golden is -inf"),
    ],
)
def test_a_sentence_says_which_side_is_not_finite(golden: float, candidate: float, said: str) -> None:
    assert does("nonfinite", metrics(golden, candidate)) == said


def test_other_classes_are_not_asked() -> None:
    assert does("exceeds", metrics(math.inf, 1.0)) == "exceeds the tolerance"


@pytest.mark.parametrize(
    ("flawed", "said"),
    [("candidate", "is not finite where golden is"), ("golden", "is finite where golden is not")],
)
def test_a_verdict_says_it_the_right_way_round(tmp_path: Path, flawed: str, said: str) -> None:
    flaw = Flaw("model.norm", "nan")
    golden = toy.record(
        toy.workload(max_tokens=5), tmp_path / "golden.trace", flaw=flaw if flawed == "golden" else None
    )
    candidate = toy.replay(golden, tmp_path / "candidate.trace", flaw=flaw if flawed == "candidate" else None)
    verdict = compare_traces(golden, candidate)
    assert said in verdict.reasons[0], verdict.reasons
