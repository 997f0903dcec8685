"""vLLM's operators rebuilt from recordings and run in isolation, in the environments of real engines."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_support import EAGER, Engines, Running, find_engine, greedy, random_model

from tracereplay.alone.replay import Selection, replay_isolated
from tracereplay.comparator import compare_traces
from tracereplay.trace import Trace, open_trace
from tracereplay.verdict import Verdict

pytestmark = pytest.mark.engine

LLAMA = {
    "VocabParallelEmbedding", "RMSNorm", "QKVParallelLinear", "RotaryEmbedding", "Attention", "RowParallelLinear",
    "MergedColumnParallelLinear", "SiluAndMul",
}  # fmt: skip


def replayed(golden: Trace, engine: str, out: Path, site: str = "*") -> Verdict:
    made = replay_isolated(find_engine(engine), Path(golden.path), out, selection=Selection(site))
    return compare_traces(golden, open_trace(made))


def classes(verdict: Verdict) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for operator in verdict.operators:
        found.setdefault(operator.operator, set()).add(operator.error_class)
    return found


def left(verdict: Verdict) -> dict[str, str]:
    return {n.site.rsplit(".", 1)[-1]: n.reason for n in verdict.coverage.not_compared}


def test_in_the_recording_engine_every_operator_gives_every_bit(golden_v0: Trace, tmp_path: Path) -> None:
    verdict = replayed(golden_v0, "v0", tmp_path / "v0.trace")
    assert (verdict.verdict, verdict.mode) == ("match", "isolated")
    assert classes(verdict) == {operator: {"identical"} for operator in LLAMA}
    assert set(left(verdict)) == {"logits_processor", "sampler"}
    calls = sum(len(step.calls) for step in golden_v0.steps("record"))
    assert verdict.coverage.golden_calls == calls
    assert verdict.coverage.compared_calls == calls - 2 * len(golden_v0.steps("record"))


@pytest.mark.parametrize("engine", ["v1", pytest.param("v1-0.18", marks=pytest.mark.long)])
def test_in_a_newer_engine_they_err_as_they_do_in_its_injected_pass(
    golden_v0: Trace, engine: str, tmp_path: Path
) -> None:
    verdict = replayed(golden_v0, engine, tmp_path / "v1.trace")
    rounding = {"RMSNorm", "SiluAndMul", "Attention"}
    assert verdict.verdict == "match"
    found = classes(verdict)
    # Without AVX-512 vLLM's rotary kernel truncates in newer versions too.
    assert found.pop("RotaryEmbedding") in ({"rounding"}, {"identical"})
    expected = {o: {"rounding"} if o in rounding else {"identical"} for o in LLAMA - {"RotaryEmbedding"}}
    assert found == expected
    worst = max(o.metrics.allowance_ratio for o in verdict.operators)
    assert 0.3 < worst < 0.8


def test_the_same_errors_as_in_the_injected_pass(golden_v0: Trace, v1: Running, tmp_path: Path) -> None:
    """An operator returns the same in isolation and in the engine, which composed its batches differently."""
    injected = {o.site: o for o in v1.verdict(golden_v0).operators}
    verdict = replayed(golden_v0, "v1", tmp_path / "v1.trace", site="*norm*")
    assert len(verdict.operators) == 11
    for operator in verdict.operators:
        other = injected[operator.site].metrics
        assert operator.metrics.allowance_ratio == pytest.approx(other.allowance_ratio, rel=1e-6)
        assert operator.metrics.equal == pytest.approx(other.equal, rel=1e-6)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Qwen2 with random weights: biases, and a head that is the embedding."""
    out = tmp_path_factory.mktemp("models") / "qwen2"
    return random_model(out, "qwen2", "--layers", "2")


@pytest.mark.parametrize(
    ("model", "operators", "dtype"),
    [("gemma", {"GemmaRMSNorm", "GeluAndMul"}, "bfloat16"), ("qwen", {"QKVParallelLinear"}, "float32")],
)
@pytest.mark.long
def test_other_models(
    request: pytest.FixtureRequest, engines: Engines, model: str, operators: set[str], dtype: str, tmp_path: Path
) -> None:
    """Norms of 1 + weight, GELU, biases, tied weights, float32."""
    path = request.getfixturevalue(model)
    settings = {**EAGER, "dtype": dtype}
    golden = engines.start("v1", path, dtype=dtype).record(*greedy(12, 5, max_tokens=3), settings=settings)
    verdict = replayed(golden, "v1", tmp_path / "alone.trace")
    found = classes(verdict)
    assert operators <= set(found)
    assert {c for kinds in found.values() for c in kinds} == {"identical"}
    assert set(left(verdict)) == {"logits_processor", "sampler"}
