"""Cancelling takes away an operator's own error and leaves what it inherited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracereplay.cancellation import Cancellation
from tracereplay.engines import toy
from tracereplay.engines.toy.names import NAMES, Naming
from tracereplay.trace import open_trace


def logprobs(path: Path, name: str) -> np.ndarray[Any, Any]:
    found = {s.key: s.logprob for step in open_trace(path).steps(name) for s in step.sampled}
    return np.array([found[key] for key in sorted(found)])


def replayed(golden: Path, folder: Path, selection: Cancellation, **options: Any) -> np.ndarray[Any, Any]:
    """Logprobs, over golden's, of a run in which ``selection`` is cancelled."""
    injected = folder / "injected.trace"
    if not injected.exists():
        toy.replay(golden, injected, passes=("injected",), **options)
    path = toy.replay(
        golden, folder / f"{len(list(folder.iterdir()))}.trace", passes=("cancelled",),
        cancel=(injected, selection), **options,
    )  # fmt: skip
    difference: np.ndarray[Any, Any] = logprobs(path, "cancelled") - logprobs(golden, "record")
    return difference


FLAWS = {
    "none, other rounding": {"rounding": "twice"},
    "an operator": {"flaw": toy.Flaw("model.layers.0.self_attn.o_proj", "scale")},
    "an edge": {"flaw": toy.Flaw("model.layers.1.mlp.act_fn", "scaled_edge")},
    "nan": {"flaw": toy.Flaw("model.layers.1.mlp.down_proj", "nan")},
    "two ranks": {"rounding": "twice", "tensor_parallel": 2},
    "chunks": {"rounding": "twice", "max_rows": 4},
    "into a sum": {"flaw": toy.Flaw("model.norm", "scaled_edge", 1)},
}


@pytest.mark.parametrize("naming", NAMES)
@pytest.mark.parametrize("name", FLAWS)
def test_with_everything_cancelled_golden_logprobs_come_back_bit_for_bit(
    name: str, naming: Naming, tmp_path: Path
) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden.trace", naming=naming)
    assert (replayed(golden, tmp_path, Cancellation(everything=True), **FLAWS[name]) == 0).all()


def test_with_nothing_cancelled_it_is_the_rerun(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden.trace")
    rerun = toy.replay(golden, tmp_path / "rerun.trace", passes=("rerun",), rounding="twice")
    found = replayed(golden, tmp_path, Cancellation(), rounding="twice")
    assert (found == logprobs(rerun, "rerun") - logprobs(golden, "record")).all()
    assert (found != 0).any()


def test_an_innocent_operator_does_not_wipe_out_what_it_inherited(tmp_path: Path) -> None:
    """The residual stream passes through every norm: held norms would bring the drift to zero."""
    golden = toy.record(toy.workload(), tmp_path / "golden.trace")
    fault = "model.layers.0.mlp.down_proj"
    options = {"flaw": toy.Flaw(fault, "scale")}
    norms = {site for site in open_trace(golden).sites("record") if site.endswith("norm")}
    innocent = replayed(golden, tmp_path, Cancellation(frozenset(norms)), **options)
    guilty = replayed(golden, tmp_path, Cancellation(frozenset({fault})), **options)
    assert np.abs(innocent).max() > 0.01
    assert (guilty == 0).all()


def test_of_two_faults_each_leaves_the_other(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden.trace")
    first, second = "model.layers.0.self_attn.o_proj", "model.layers.1.mlp.act_fn"
    flaws = [toy.Flaw(first, "scale"), toy.Flaw(second, "scaled_edge")]
    sides = {"operator": Cancellation(frozenset({first})), "edge": Cancellation(edges=frozenset({(second, 0)}))}
    for selection in sides.values():
        assert (replayed(golden, tmp_path, selection, flaw=flaws) != 0).any()
    both = Cancellation(frozenset({first}), frozenset({(second, 0)}))
    assert np.abs(replayed(golden, tmp_path, both, flaw=flaws)).max() < 0.02


@pytest.mark.parametrize("index", [0, 1])
def test_of_a_sum_both_addends_are_cancelled_together(tmp_path: Path, index: int) -> None:
    """Golden has the sum alone: what one addend does otherwise is not to be told from what the other does."""
    golden = toy.record(toy.workload(), tmp_path / "golden.trace", naming="split")
    site = "model.layers.1.post_attention_layernorm"
    flaw = toy.Flaw(site, "scaled_edge", index)
    rerun = toy.replay(golden, tmp_path / "rerun.trace", passes=("rerun",), flaw=flaw)
    assert np.abs(logprobs(rerun, "rerun") - logprobs(golden, "record")).max() > 0.02
    both = replayed(golden, tmp_path, Cancellation(edges=frozenset({(site, 0), (site, 1)})), flaw=flaw)
    assert (both == 0).all()


def test_operators_that_golden_calls_otherwise_leave_what_they_inherited(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden.trace", naming="split")
    guilty, innocent = "model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.act_fn"
    flaw = toy.Flaw(guilty, "scale")
    assert (replayed(golden, tmp_path, Cancellation(frozenset({guilty})), flaw=flaw) == 0).all()
    assert (replayed(golden, tmp_path, Cancellation(frozenset({innocent})), flaw=flaw) != 0).any()


def test_a_selection_survives_the_way_to_the_engine() -> None:
    chosen = Cancellation(frozenset({"b", "a"}), frozenset({("c", 1)}))
    assert Cancellation.from_dict(chosen.as_dict()) == chosen
    assert chosen.takes("a", "out", 1)
    assert not chosen.takes("a", "in", 0)
    assert chosen.takes("c", "in", 1)
    assert not chosen.takes("c", "in", 0)
