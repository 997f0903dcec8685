"""A verdict of each kind, as people get to see them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tracereplay.comparator import Policy, compare_traces
from tracereplay.engines import toy
from tracereplay.engines.toy import Flaw
from tracereplay.verdict import Verdict

POLICY = Policy(logprob_max_abs=0.01)
REPLAYED: dict[str, dict[str, Any]] = {
    "same": {},
    "rounding": {"rounding": "twice"},
    "operator": {"rounding": "twice", "flaw": Flaw("model.layers.1.input_layernorm", "eps")},
    "edge": {"max_rows": 3, "flaw": Flaw("model.layers.1.post_attention_layernorm", "scaled_edge", 1)},
    "nan": {"flaw": Flaw("model.layers.1.mlp.down_proj", "nan")},
    "biased": {"flaw": Flaw("model.layers.1.mlp.gate_up_proj", "floor")},
    "sampler": {"flaw": Flaw("sampler", "second")},
    "weights": {"model": "another"},
    "rerun": {"rounding": "twice", "passes": ("rerun",), "flaw": Flaw("model.layers.0.mlp.act_fn", "element")},
}


@pytest.fixture(scope="session")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    path = tmp_path_factory.mktemp("report")
    golden = toy.record(toy.workload(), path / "golden")
    found = {
        name: compare_traces(golden, toy.replay(golden, path / name, **given), POLICY)
        for name, given in REPLAYED.items()
    }
    split = toy.record(toy.workload(), path / "split", naming="split")
    found["paired"] = compare_traces(split, toy.replay(split, path / "fused"), POLICY)
    exact = toy.record(toy.workload(dtype="float32"), path / "exact")
    found["setting"] = compare_traces(exact, toy.replay(exact, path / "coarse", settings={"dtype": "bfloat16"}))
    other = toy.record(toy.workload(), path / "other", flaw=Flaw("model.norm", "scale"))
    found["recordings"] = compare_traces(golden, other, POLICY)
    noisy = toy.replay(golden, path / "noisy", noise=0.002, passes=("rerun", "injected", "injectedtwice"))
    found["unstable"] = compare_traces(golden, noisy, Policy(logprob_max_abs=1.0, differing_tokens=99))
    found["structure"] = compare_traces(golden, _without_a_layer(golden, path), POLICY)
    found["unobserved"] = compare_traces(golden, _with_another_rerun(golden, path), POLICY)
    return found


def _without_a_layer(golden: Path, path: Path) -> Path:
    sys.path.append(str(Path(__file__).parents[1] / "comparator"))
    from tests_support import without_sites

    flawed = toy.replay(golden, path / "into", flaw=Flaw("model.norm", "scaled_edge", 1))
    return Path(without_sites(flawed, path / "structure", "injected", "model.layers.1."))


def _with_another_rerun(golden: Path, path: Path) -> Path:
    good = toy.replay(golden, path / "good")
    bad = toy.replay(golden, path / "bad", flaw=Flaw("model.layers.0.mlp.act_fn", "element"))
    shutil.copy(bad / "rerun-rank0.seg", good / "rerun-rank0.seg")
    return good
