"""Rows that routers send to other experts, and rows that nearly tie: on arrays, and on whole traces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracereplay.comparator import Policy, Rule, compare_traces
from tracereplay.comparator.judging.routing import flipped_rows, top_k_gap, top_k_set
from tracereplay.event import RowKey, Sampled, Site, make_rows
from tracereplay.trace import PendingCall, SegmentWriter, TensorBytes, TraceDirectory, segment_path
from tracereplay.verdict import RoutingFinding, Verdict

LOGITS = np.array([[4.0, 3.0, 2.0, 1.0], [0.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]], np.float32)


def test_a_row_goes_to_the_experts_with_the_largest_logits_and_of_equal_ones_to_the_first() -> None:
    chosen = [np.flatnonzero(row).tolist() for row in top_k_set(LOGITS, 2)]
    assert chosen == [[0, 1], [1, 3], [0, 1]]
    assert top_k_gap(LOGITS, 2).tolist() == [1.0, 0.0, 0.0]


def test_only_another_set_of_experts_is_a_flip() -> None:
    other_order = LOGITS.copy()
    other_order[0, :2] = 3.0, 4.0
    assert not flipped_rows(LOGITS, other_order, 2).any()
    other_order[0, 2] = 3.5
    assert flipped_rows(LOGITS, other_order, 2).tolist() == [True, False, False]


@given(st.integers(0, 2**32 - 1), st.integers(1, 7))
def test_a_row_flips_only_if_its_gap_is_within_twice_the_error(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    golden = random.standard_normal((16, 8))
    error = random.uniform(-0.2, 0.2, golden.shape)
    flips = flipped_rows(golden, golden + error, k)
    assert (top_k_gap(golden, k)[flips] <= 2 * np.abs(error[flips]).max(axis=1)).all()


# Whole traces: a gate and experts, three rows in one step.

GATE, EXPERTS = "model.layers.0.moe.gate", "model.layers.0.moe.experts"
EXACT = np.array([[4, 3, 2, 1], [0, 1, 1.001, 2], [1, 2, 3, 4]], np.float32)
Floats = npt.NDArray[np.float32]


def trace(
    path: Path, passes: dict[str, tuple[Floats, Floats, Floats]], routing: str = "top_k", width: int = 4
) -> Path:
    """A trace whose passes have: what the gate gives, the logits that arrive at the experts, and their result.

    Args:
        width: of the hidden states.
    """
    prompt = {"prompt_token_ids": [1, 2, 3], "sampling": {"temperature": 0.0, "max_tokens": 1}}
    kind = "recording" if "record" in passes else "replay"
    run = {"kind": kind, "workload": {"model": "m", "prompts": [prompt], "settings": {}}, "engine": {"name": "e"}}
    directory = TraceDirectory(path, run)
    config = {"top_k": 2, "num_experts": 4, "routing": routing}
    sites = [Site(GATE, "GateLinear", 1, ("x",)), Site(EXPERTS, "FusedMoE", 2, ("x", "logits"), config=config)]
    rows = make_rows([(0, 0, p) for p in range(3)])
    x = np.ones((3, width), np.float32)
    for name, (gate, arrived, result) in passes.items():
        writer = SegmentWriter(segment_path(path, name, 0), {})
        writer.sites(sites)
        # What is not as wide as golden's is not fed.
        fed = None if name == "record" else (0, 1) if arrived.shape == EXACT.shape else (0,)
        calls = [
            PendingCall(1, 0, rows, rows, {0: tensor(x)}, {0: tensor(gate)}),
            PendingCall(2, 0, rows, rows, {0: tensor(x), 1: tensor(arrived)}, {0: tensor(result)}, fed=fed),
        ]
        writer.step(0, rows, calls, [Sampled(RowKey(0, 0, 3), 7, 7, -1.0)], [])
        writer.close({})
        token = {"request": 0, "sequence": 0, "token_ids": [7], "prompt_logprobs": None}
        directory.add_pass(name, {"requests": [token]})
    directory.complete()
    return path


def tensor(x: Floats) -> TensorBytes:
    return TensorBytes("float32", x.shape, (x.shape[1], 1), x.astype(np.float32).tobytes())


def moved(x: Floats, row: int, column: int, by: float) -> Floats:
    found = x.copy()
    found[row, column] += np.float32(by)
    return found


def judged(
    folder: Path, gate: Floats, rerun: Floats, result: Floats, routing: str = "top_k", policy: Policy | None = None
) -> Verdict:
    """A replay's verdict, by the gate's result on golden inputs, the rerun's logits and the experts' result."""
    ones = np.ones((3, 4), np.float32)
    golden = trace(folder / "golden", {"record": (EXACT, EXACT, ones)}, routing)
    passes = {"rerun": (rerun, rerun, ones), "injected": (gate, EXACT, result)}
    return compare_traces(golden, trace(folder / "candidate", passes, routing), policy)


ONES = np.ones((3, 4), np.float32)


def test_flips_and_near_ties_are_counted_for_each_router(tmp_path: Path) -> None:
    """Row 1 nearly ties: its second and third logits are a thousandth apart, and the gate errs by two."""
    verdict = judged(tmp_path, moved(EXACT, 0, 0, 0.002), moved(EXACT, 1, 1, 0.01), ONES)
    assert verdict.routing == (RoutingFinding(EXPERTS, 3, 1, 1),)


def test_an_exact_gate_has_no_near_ties_but_equal_logits(tmp_path: Path) -> None:
    assert judged(tmp_path, EXACT, EXACT, ONES).routing == (RoutingFinding(EXPERTS, 3, 0, 0),)


def test_a_router_that_chooses_otherwise_is_not_judged(tmp_path: Path) -> None:
    assert judged(tmp_path, EXACT, moved(EXACT, 1, 1, 0.01), ONES, "other").routing == ()


# The gate's error of two thousandths is no divergence of its own.
LOOSE = Policy(rules=(Rule(operator="GateLinear", a=1e6, b=1e6),))


@pytest.mark.parametrize(("row", "said"), [(1, True), (0, False)])
def test_experts_out_of_tolerance_are_excused_only_where_their_router_nearly_ties(
    tmp_path: Path, row: int, said: bool
) -> None:
    verdict = judged(tmp_path, moved(EXACT, 0, 0, 0.002), EXACT, moved(ONES, row, 0, 0.5), policy=LOOSE)
    assert verdict.first_divergence is not None
    assert verdict.first_divergence.site == EXPERTS
    assert any("nearly ties" in reason for reason in verdict.reasons) == said


def test_the_routing_survives_json(tmp_path: Path) -> None:
    verdict = judged(tmp_path, EXACT, moved(EXACT, 1, 1, 0.01), ONES)
    data = verdict.as_dict()
    assert data["routing"] == [{"site": EXPERTS, "rows": 3, "flips": 1, "near_ties": 0}]
    assert Verdict.from_dict(data).routing == verdict.routing


def gated_inside(folder: Path, gate: Floats, rerun: Floats, result: Floats) -> Verdict:
    """The same where the candidate's experts are given hidden states twice, and run the gate themselves."""
    hidden = np.ones((3, 6), np.float32)
    golden = trace(folder / "golden", {"record": (EXACT, EXACT, hidden)}, width=6)
    passes = {"rerun": (rerun, hidden, hidden), "injected": (gate, hidden, result)}
    return compare_traces(golden, trace(folder / "candidate", passes, width=6), LOOSE)


SIX = np.ones((3, 6), np.float32)


def test_experts_that_run_the_gate_themselves_are_compared_with_those_that_are_given_logits(
    tmp_path: Path,
) -> None:
    verdict = gated_inside(tmp_path, EXACT, EXACT, SIX)
    assert (verdict.verdict, verdict.coverage.not_compared) == ("match", ())
    assert {(o.site, o.error_class) for o in verdict.operators} == {(GATE, "identical"), (EXPERTS, "identical")}


def test_their_own_error_is_theirs_and_the_gates_is_not(tmp_path: Path) -> None:
    verdict = gated_inside(tmp_path, moved(EXACT, 0, 0, 0.002), EXACT, moved(SIX, 0, 3, 0.5))
    assert verdict.first_divergence is not None
    assert (verdict.first_divergence.kind, verdict.first_divergence.site) == ("operator", EXPERTS)
    assert {e.error_class for e in verdict.edges if e.site == EXPERTS} == {"identical"}


def test_flips_are_counted_by_what_their_gate_gives(tmp_path: Path) -> None:
    verdict = gated_inside(tmp_path, moved(EXACT, 0, 0, 0.002), moved(EXACT, 1, 1, 0.01), SIX)
    assert verdict.routing == (RoutingFinding(EXPERTS, 3, 1, 1),)
