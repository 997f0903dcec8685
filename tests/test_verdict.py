"""The verdict's JSON is an agreement with every consumer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tracereplay import verdict as module
from tracereplay.errors import UsageError
from tracereplay.verdict import (
    Attribution,
    Closure,
    Coverage,
    Divergence,
    EdgeFinding,
    Metrics,
    NotCompared,
    OperatorFinding,
    SettingDifference,
    Siblings,
    Source,
    TokenDivergence,
    TokenFinding,
    Tolerance,
    Verdict,
    Worst,
)
from tracereplay.verdict.bisection import Bisection, Member, Skipped, Tried
from tracereplay.verdict.rollout import LengthRow, PositionBin, Reported, Rollout, Spread

NAN, INF = float("nan"), float("inf")
ROLLOUT = Rollout(
    2, 1, 1, Spread(0.1, INF, 0.1, 0.1, 0.1), 0.0, 1.0, 0.2, 0.5, 0.1, INF, 0.5, 1.0,
    (PositionBin(0, 1, 2, 0.1, 0.2),), (LengthRow(2, 1, 0.1, 0.1, 0.1, 1.0),), Reported("raw", "scaled", 2, 0.0),
)  # fmt: skip


def full() -> Verdict:
    worst = Worst(0, 1, 2, 3, 1.5, -INF, 4)
    siblings = Siblings(9, "truncation", True, "bias_ulp", 0.24, 0.83, 0.05, INF)
    metrics = Metrics(0.5, INF, 0.1, 2.0, 3.0, -0.2, 7, worst, siblings)
    divergence = Divergence(
        "edge", "model.norm", "RMSNorm", "exceeds", 0, 1, 2, 4, 1, metrics, Tolerance(2, 3, "bfloat16"),
        Tolerance(INF, INF, "bfloat16", "passing"), None, 0.25,
    )  # fmt: skip
    return Verdict(
        verdict="diverged",
        mode="injected",
        cause="edge",
        reasons=("because",),
        golden=Source({"name": "a"}, "g.trace", "00"),
        candidate=Source({"name": "b"}, "c.trace", None),
        settings_diff=(SettingDifference("dtype", "a", None, "numeric"),),
        first_divergence=divergence,
        operators=(OperatorFinding("model.norm", "RMSNorm", "rounding", 17, 43, metrics, 1, Tolerance(1, 2), None,
                                   Tolerance(0.5, 1)),),
        edges=(EdgeFinding("model.norm", 1, "exceeds", 43, Metrics()),),
        tokens=TokenFinding(32, TokenDivergence(0, 23, 207, 67), 0.25, 0.125, 32, 1),
        coverage=Coverage(10, 8, (NotCompared("x", 3, "why"),), 1),
        closure=Closure(False, "model.norm"),
        attribution=(Attribution(("RMSNorm",), 0.92, (0.9, 0.94)),),
        first_visible=divergence,
        notes=("note",),
        rollout=ROLLOUT,
        bisection=Bisection("operators", 9, 1, 64, "parity", (Member("model.norm", "RMSNorm", "exceeds"),), True,
                            False, -INF, (), (Skipped("sampler", "why"),), (Tried("1.0", "bad", "why"),), "1.0"),
    )  # fmt: skip


def test_reading_gives_what_was_written() -> None:
    data = full().as_dict()
    assert Verdict.from_dict(json.loads(json.dumps(data, allow_nan=False))) == full()


def test_the_keys_are_those_of_schema_1() -> None:
    data = full().as_dict()
    assert list(data)[:16] == [
        "schema", "verdict", "mode", "cause", "reasons", "golden", "candidate", "settings_diff",
        "first_divergence", "operators", "edges", "tokens", "coverage", "closure", "attribution", "first_visible",
    ]  # fmt: skip
    first = data["first_divergence"]
    expected = {"kind", "site", "operator", "kernel", "class", "request", "request_id", "sequence",
                "position", "step", "input", "metrics", "tolerance", "passing_tolerance",
                "passing_bias"}  # fmt: skip
    assert set(first) == expected
    assert {"site", "operator", "class", "calls", "rows", "metrics"} <= set(data["operators"][0])
    assert {"site", "input", "class", "rows", "metrics"} <= set(data["edges"][0])
    measured = ["equal", "allowance_ratio", "relative_l2", "max_abs", "max_ulp", "bias_ulp", "nonfinite", "worst"]
    assert list(data["operators"][0]["metrics"]) == [*measured, "siblings"]
    assert list(data["edges"][0]["metrics"]) == measured  # there only where siblings were judged
    assert list(data["operators"][0]["metrics"]["siblings"]) == [
        "count", "signature", "apart", "measure", "value", "median", "spread", "score",
    ]  # fmt: skip
    assert {"compared", "first_divergence", "logprob_abs_diff"} <= set(data["tokens"])
    assert {"request": 0, "position": 23, "golden": 207, "candidate": 67}.items() <= (
        data["tokens"]["first_divergence"].items()
    )
    assert data["tokens"]["logprob_abs_diff"] == {"max": 0.25, "mean": 0.125}
    assert {"golden_calls", "compared_calls", "not_compared"} <= set(data["coverage"])
    assert data["coverage"]["not_compared"] == [{"site": "x", "rows": 3, "reason": "why"}]
    assert {"held": False, "first_broken": "model.norm"}.items() <= data["closure"].items()
    assert {"operators", "explains", "interval", "measure"} <= set(data["attribution"][0])
    assert {"kind", "minimal", "unexplained"} <= set(data["bisection"])
    assert {"tokens", "clipped", "k1", "k3", "effective_tokens", "by_length"} <= set(data["rollout"])


def test_an_operators_divergence_names_its_output() -> None:
    first = full().first_divergence
    assert first is not None
    data: dict[str, Any] = {**first.as_dict(), "kind": "operator", "output": 0}
    assert "output" in Divergence.from_dict(data).as_dict()


@pytest.mark.parametrize(("outcome", "code"), [("match", 0), ("diverged", 1), ("inconclusive", 3)])
def test_the_exit_code_follows_the_verdict(outcome: Any, code: int) -> None:
    assert Verdict(outcome, "injected", None, (), Source({}, "", None), Source({}, "", None)).exit_code == code


@pytest.mark.parametrize(
    "data", [{}, {"schema": 2}, [], "x", {"schema": 1}, {**full().as_dict(), "verdict": "maybe"}]
)
def test_anything_else_is_refused_with_a_sentence(data: Any) -> None:
    with pytest.raises(UsageError, match="verdict"):
        Verdict.from_dict(data)


def test_coverage_is_a_share_of_what_was_due() -> None:
    assert Coverage(10, 8, (), 2).share == 1.0
    assert Coverage(10, 4, (), 2).share == 0.5
    assert Coverage().share == 0.0


def test_the_public_names_are_complete_and_sorted() -> None:
    names = list(module.__all__)
    assert sorted(names, key=lambda n: (not n.isupper(), n)) == names
