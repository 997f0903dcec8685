"""Kernels that were replayed in isolation are judged one by one, and every call is accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_support import call, tensor, write_golden, write_isolated
from rich.console import Console

from tracereplay.comparator import Policy, compare_traces
from tracereplay.errors import DamagedTrace
from tracereplay.report import terminal
from tracereplay.verdict import Verdict
from tracereplay.verdict.isolated import NOT_ASKED

X = np.linspace(1, 2, 64, dtype=np.float32).reshape(2, 32)
NOTHING = call("aten.mul.Tensor", failed=NOT_ASKED)


def verdict_of(folder: Path, golden: list[Any], candidate: list[Any], policy: Policy | None = None) -> Verdict:
    mine = write_golden(folder / "golden.trace", golden)
    return compare_traces(mine, write_isolated(folder / "candidate.trace", mine, candidate), policy)


def test_the_first_kernel_out_of_tolerance_is_named(tmp_path: Path) -> None:
    golden = [
        call("aten.add.Tensor", [tensor(X)]),
        call("aten.mul.Tensor", [tensor(X)]),
        call("aten.mul.Tensor", [tensor(X)]),
    ]
    rounded = np.nextafter(X, np.float32(9))
    wrong = X.copy()
    wrong[1, 3] *= 1.01
    candidate = [
        call("aten.add.Tensor", [tensor(rounded)]),
        call("aten.mul.Tensor", [tensor(X)]),
        call("aten.mul.Tensor", [tensor(wrong)]),
    ]
    verdict = verdict_of(tmp_path, golden, candidate)
    assert (verdict.verdict, verdict.mode, verdict.cause) == ("diverged", "isolated", "operator")
    first = verdict.first_divergence
    assert first is not None
    assert (first.site, first.operator, first.kernel, first.error_class) == (
        "model.norm",
        "RMSNorm",
        "aten.mul.Tensor",
        "exceeds",
    )
    assert (first.request, first.position, first.index) == (0, 1, 0)
    assert first.metrics.worst is not None
    assert first.metrics.worst.index == 3
    assert verdict.isolated is not None
    classes = {f.kernel: (f.error_class, f.calls) for f in verdict.isolated.kernels}
    assert classes == {"aten.add.Tensor": ("rounding", 1), "aten.mul.Tensor": ("exceeds", 2)}
    passing = next(f for f in verdict.isolated.kernels if f.kernel == "aten.mul.Tensor").passing_tolerance
    assert passing is not None
    assert passing.a > 16
    assert [d.name for d in verdict.settings_diff] == ["versions.torch"]


def test_every_bit_counts_under_a_strict_policy(tmp_path: Path) -> None:
    rounded = call("aten.add.Tensor", [tensor(np.nextafter(X, np.float32(9)))])
    golden = [call("aten.add.Tensor", [tensor(X)])]
    assert verdict_of(tmp_path / "a", golden, [rounded]).verdict == "match"
    assert verdict_of(tmp_path / "b", golden, [rounded], Policy().made_strict()).verdict == "diverged"


def test_what_was_written_in_place_and_numbers_are_compared(tmp_path: Path) -> None:
    golden = [call("aten.add_.Tensor", written={0: tensor(X)}), call("aten.item.default", [3, True, 0.5])]
    same = verdict_of(tmp_path / "a", golden, golden)
    assert same.verdict == "match"
    assert same.isolated is not None
    assert {(f.kernel, f.dtype): f.error_class for f in same.isolated.kernels} == {
        ("aten.add_.Tensor", "float32"): "identical",
        ("aten.item.default", "int64"): "identical",
        ("aten.item.default", "float64"): "identical",
    }
    other = [golden[0], call("aten.item.default", [4, True, 0.5])]
    first = verdict_of(tmp_path / "b", golden, other).first_divergence
    assert first is not None
    assert (first.kernel, first.index) == ("aten.item.default", 0)


@pytest.mark.parametrize(
    ("golden", "candidate", "reason", "outcome"),
    [
        ({}, {"failed": "not replayable: it opens a file"}, "not replayable: it opens a file", "inconclusive"),
        ({}, {"failed": "crashed: signal 11 (SIGSEGV)"}, "crashed: signal 11 (SIGSEGV)", "diverged"),
        ({}, {"failed": "timed out after 60 s"}, "timed out after 60 s", "inconclusive"),
        ({"outputs": [tensor(X)]}, {"outputs": [tensor(X.T)]}, "result 0 is float32[32, 2]", "diverged"),
        (
            {"outputs": [tensor(X)]}, {"outputs": [tensor(X.astype(np.int64))]}, "returned something different",
            "diverged",
        ),
        ({"outputs": [tensor(X)]}, {"outputs": []}, "returned something different: 0 results for 1", "diverged"),
        ({"outputs": [["n", "w", "float32", [2], [1], 0]]}, {}, "gives a parameter", "inconclusive"),
        ({"outputs": [["x", "float32", [2], "the cache"], 1]}, {}, "the cache was not recorded", "inconclusive"),
        ({"name": "aten.empty.memory_format", "outputs": [tensor(X)]}, {}, "uninitialized memory", "inconclusive"),
    ],
)  # fmt: skip
def test_what_is_not_compared_has_a_reason(
    tmp_path: Path, golden: dict[str, Any], candidate: dict[str, Any], reason: str, outcome: str
) -> None:
    name = golden.pop("name", "aten.add.Tensor")
    verdict = verdict_of(tmp_path, [call(name, **golden)], [call(name, **candidate)])
    assert verdict.verdict == outcome
    assert verdict.isolated is not None
    (left,) = verdict.isolated.not_replayed
    assert reason in left.reason
    assert (left.kernel, left.calls, left.site) == (name, 1, "model.norm")
    assert (verdict.isolated.calls, verdict.isolated.compared) == (1, 0)
    assert reason in " ".join(verdict.reasons) or outcome == "inconclusive"


def test_what_nobody_asked_for_is_no_gap(tmp_path: Path) -> None:
    golden = [call("aten.mul.Tensor", [tensor(X)]), call("aten.add.Tensor", [tensor(X)])]
    verdict = verdict_of(tmp_path, golden, [NOTHING, golden[1]])
    assert verdict.verdict == "match"
    assert (verdict.coverage.golden_calls, verdict.coverage.compared_calls) == (1, 1)


def test_a_random_kernel_says_so(tmp_path: Path) -> None:
    generator = {"generator": ["o", "Generator", "cpu", -1]}
    golden = [call("aten.rand.default", [tensor(X)], keywords=generator)]
    verdict = verdict_of(tmp_path, golden, [call("aten.rand.default", [tensor(X + 1)])])
    assert "Given a generator in the same state, it draws different numbers." in verdict.reasons[0]


def test_a_candidate_of_another_golden_is_not_judged(tmp_path: Path) -> None:
    mine = write_golden(tmp_path / "a.trace", [call("aten.add.Tensor", [tensor(X)])])
    other = write_golden(tmp_path / "b.trace", [call("aten.add.Tensor", [tensor(X + 1)])])
    candidate = write_isolated(tmp_path / "c.trace", other, [call("aten.add.Tensor", [tensor(X)])])
    assert compare_traces(mine, candidate).verdict == "inconclusive"


def test_kernels_that_do_not_stand_where_golden_has_them_are_damage(tmp_path: Path) -> None:
    mine = write_golden(tmp_path / "a.trace", [call("aten.add.Tensor", [tensor(X)])])
    for number, calls in enumerate(([], [NOTHING, NOTHING], [call("aten.sub.Tensor", [tensor(X)])])):
        candidate = write_isolated(tmp_path / f"{number}.trace", mine, calls)
        with pytest.raises(DamagedTrace):
            compare_traces(mine, candidate)


def test_the_verdict_survives_json_and_is_printed(tmp_path: Path) -> None:
    golden = [call("aten.mul.Tensor", [tensor(X)]), call("x.y.default")]
    verdict = verdict_of(
        tmp_path,
        golden,
        [call("aten.mul.Tensor", [tensor(X * 2)]), call("x.y.default", failed="crashed: \x1b[31m")],
    )
    assert Verdict.from_dict(json.loads(json.dumps(verdict.as_dict()))) == verdict
    console = Console(width=130, record=True, file=(tmp_path / "out").open("w"))
    terminal.render(verdict, console)
    text = console.export_text()
    assert "exceeds" in text
    assert "1 of 2 calls executed in isolation and compared" in text
    assert "crashed: \\x1b[31m: x.y" in text
