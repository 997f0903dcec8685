"""The toy engine generates as engines do, and replays what it recorded."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracereplay.engines import toy
from tracereplay.errors import UsageError, WorkloadError
from tracereplay.event import Step
from tracereplay.trace import open_trace
from tracereplay.workload import Prompt, Workload


def generated(path: Path, name: str = "record") -> list[list[int]]:
    return [r["token_ids"] for r in open_trace(path).results[name]["requests"]]


def steps(path: Path, name: str = "record") -> list[Step]:
    return open_trace(path).steps(name)


def test_it_generates_the_same_each_time(tmp_path: Path) -> None:
    one, two = (toy.record(toy.workload(), tmp_path / name) for name in "ab")
    assert open_trace(one).digest() == open_trace(two).digest()
    assert open_trace(one).complete


@pytest.mark.parametrize("max_rows", [1, 3, 5, None])
def test_the_schedule_does_not_change_the_tokens(tmp_path: Path, max_rows: int | None) -> None:
    plain = toy.record(toy.workload(), tmp_path / "plain")
    other = toy.record(toy.workload(), tmp_path / "other", max_rows=max_rows)
    assert generated(plain) == generated(other)
    assert all(len(step.rows) <= (max_rows or 99) for step in steps(other))


def test_every_row_is_computed_once(tmp_path: Path) -> None:
    path = toy.record(toy.workload(max_tokens=4), tmp_path / "t", max_rows=3)
    rows = [tuple(row) for step in steps(path) for row in step.rows.tolist()]
    lengths = {0: 5, 1: 3, 2: 4}
    assert sorted(rows) == [(r, 0, p) for r, n in lengths.items() for p in range(n + 3)]


def test_two_samples_are_drawn_apart(tmp_path: Path) -> None:
    work = toy.workload([[1, 2, 3]], sampling={"n": 2, "temperature": 1.0, "seed": 0})
    shared = toy.record(work, tmp_path / "shared", rounding="twice")
    first, second = generated(shared)
    assert first != second
    assert {tuple(row) for row in steps(shared)[0].rows.tolist()} == {(0, 0, 0), (0, 0, 1), (0, 0, 2)}
    alone = toy.record(work, tmp_path / "alone", rounding="once")
    assert len(steps(alone)[0].rows) == 6


def test_a_replay_forces_golden_tokens_and_keeps_its_own_choice(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden")
    candidate = toy.replay(golden, tmp_path / "candidate", model="another")
    sampled = [s for step in steps(candidate, "rerun") for s in step.sampled]
    assert generated(candidate, "rerun") == generated(golden)
    assert any(s.choice != s.token for s in sampled)


def test_the_injected_pass_records_what_arrived_and_goes_on_with_golden(tmp_path: Path) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden")
    flaw = toy.Flaw("model.layers.0.mlp.act_fn", "scale")
    candidate = toy.replay(golden, tmp_path / "candidate", flaw=flaw)
    for mine, theirs in zip(steps(golden), steps(candidate, "injected"), strict=True):
        for a, b in zip(mine.calls, theirs.calls, strict=True):
            assert [v.load() for v in a.inputs] == [v.load() for v in b.inputs]
            same = [v.load() for v in a.outputs] == [v.load() for v in b.outputs]
            assert same == (a.site != flaw.site)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_tensors_are_stored_in_the_models_dtype(tmp_path: Path, dtype: str) -> None:
    path = toy.record(toy.workload(dtype=dtype), tmp_path / "t")
    norm = next(c for c in steps(path)[0].calls if c.site == "model.norm")
    assert norm.outputs[0].dtype == dtype
    assert steps(path)[0].calls[0].inputs[0].dtype == "int64"


def test_ranks_hold_parts(tmp_path: Path) -> None:
    path = toy.record(toy.workload(), tmp_path / "t", tensor_parallel=2)
    trace = open_trace(path)
    assert trace.ranks("record") == (0, 1)
    calls = [trace.steps("record", rank)[0].calls for rank in (0, 1)]
    shapes = {next(c for c in found if "qkv" in c.site).outputs[0].shape for found in calls}
    assert shapes == {(12, (toy.HEADS + 2 * toy.KV_HEADS) * toy.HEAD // 2)}


def test_it_takes_milliseconds(tmp_path: Path) -> None:
    toy.record(toy.workload(), tmp_path / "warm")
    begin = time.process_time()
    toy.record(toy.workload(), tmp_path / "t")
    assert time.process_time() - begin < 1.0  # about 0.05 on an idle machine


@pytest.mark.parametrize(
    "work",
    [
        Workload("toy", (Prompt((1, 500)),)),
        Workload("toy", (Prompt(None, "text"),)),
        Workload("toy", (Prompt(()),)),
    ],
)
def test_a_prompt_it_cannot_take_is_refused(tmp_path: Path, work: Workload) -> None:
    with pytest.raises(WorkloadError, match="token ids below"):
        toy.record(work, tmp_path / "t")


def test_an_unknown_flaw_is_refused() -> None:
    with pytest.raises(UsageError, match="knows no flaw 'gremlin'"):
        toy.Flaw("model.norm", "gremlin")


@pytest.mark.parametrize("kind", toy.OPERATOR_FLAWS + toy.EDGE_FLAWS)
def test_every_flaw_changes_something(tmp_path: Path, kind: str) -> None:
    site = {
        "eps": "model.norm", "rotary": "model.layers.0.self_attn.rotary_emb", "wrong_row": "model.embed_tokens",
        "stale": "model.layers.0.self_attn.attn", "scaled_edge": "model.norm", "second": "sampler",
    }.get(kind, "model.layers.0.mlp.down_proj")  # fmt: skip
    plain = toy.record(toy.workload(), tmp_path / "plain")
    flawed = toy.record(toy.workload(), tmp_path / "flawed", flaw=toy.Flaw(site, kind))
    assert open_trace(plain).digest() != open_trace(flawed).digest()


def test_logprobs_are_those_of_the_token(tmp_path: Path) -> None:
    path = toy.record(toy.workload(), tmp_path / "t")
    step = steps(path)[0]
    logits: Any = next(c for c in step.calls if c.site == "logits_processor").outputs[0]
    import ml_dtypes

    values = np.frombuffer(logits.load(), ml_dtypes.bfloat16).reshape(logits.shape).astype(np.float64)
    expected = values[0, step.sampled[0].token] - np.log(np.exp(values[0]).sum())
    assert step.sampled[0].logprob == pytest.approx(expected, rel=1e-5)
    assert step.sampled[0].token == values[0].argmax()
