"""References are right by other formulas, and who is nearer is told only where it is so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from rich.console import Console

from tracereplay.comparator import compare_traces
from tracereplay.comparator.oracle.attention import Attention
from tracereplay.comparator.oracle.duel import Duel
from tracereplay.comparator.oracle.references import Inputs, NoReference, reference_for
from tracereplay.engines.known import family_named
from tracereplay.event import Site, make_rows
from tracereplay.report import oracle as report
from tracereplay.verdict import Verdict

FIXTURES = Path(__file__).parents[2] / "fixtures"
RANDOM = np.random.default_rng(11)


def given(operator: str, *tensors: Any, weights: Any = None, width: int = 0, **config: Any) -> Any:
    """What a reference gives for an operator of this class."""
    known = family_named("vllm").operator(operator)
    site = Site("model.x", operator, 1, config=config, role=known.role, formula=known.formula)
    inputs = Inputs([np.asarray(t, np.float64) for t in tensors], (weights or {}).get, [width])
    return reference_for(site)(site, inputs)


X = RANDOM.normal(size=(3, 8))


# -- references, each against loops over Python floats ------------------------------------------------------


@pytest.mark.parametrize(("operator", "more"), [("RMSNorm", 0.0), ("GemmaRMSNorm", 1.0)])
def test_norms(operator: str, more: float) -> None:
    weight, residual = RANDOM.normal(size=8), RANDOM.normal(size=(3, 8))
    normed, total = given(operator, X, residual, weights={"weight": weight}, variance_epsilon=0.1)
    for i in range(3):
        row = [X[i, j] + residual[i, j] for j in range(8)]
        scale = 1 / math.sqrt(math.fsum(v * v for v in row) / 8 + 0.1)
        assert total[i].tolist() == row
        assert normed[i] == pytest.approx([v * scale * (more + weight[j]) for j, v in enumerate(row)], rel=1e-13)
    (alone,) = given(operator, X, weights={"weight": weight}, variance_epsilon=0.1)
    assert alone.shape == X.shape


def test_a_norm_of_heads_takes_each_head() -> None:
    weight = RANDOM.normal(size=4)
    (both,) = given("RMSNorm", X, weights={"weight": weight}, variance_epsilon=1e-6, hidden_size=4)
    (first,) = given("RMSNorm", X[:, :4], weights={"weight": weight}, variance_epsilon=1e-6, hidden_size=4)
    assert np.array_equal(both[:, :4], first)


def test_activations() -> None:
    (silu,) = given("SiluAndMul", X)
    (gelu,) = given("GeluAndMul", X, approximate="none")
    (tanh,) = given("GeluAndMul", X, approximate="tanh")
    for i in range(3):
        for j in range(4):
            g, up = float(X[i, j]), float(X[i, j + 4])
            assert silu[i, j] == pytest.approx(g / (1 + math.exp(-g)) * up, rel=1e-13)
            assert gelu[i, j] == pytest.approx(g * 0.5 * math.erfc(-g / math.sqrt(2)) * up, rel=1e-12)
            inner = math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)
            assert tanh[i, j] == pytest.approx(g / (1 + math.exp(-2 * inner)) * up, rel=1e-12)


def test_linear_layers_embeddings_and_logits() -> None:
    weight, bias = RANDOM.normal(size=(5, 8)), RANDOM.normal(size=5)
    expected = [[math.fsum(X[i, k] * weight[j, k] for k in range(8)) for j in range(5)] for i in range(3)]
    (plain,) = given("RowParallelLinear", X, weights={"weight": weight})
    (biased,) = given("QKVParallelLinear", X, weights={"weight": weight, "bias": bias})
    (skipped,) = given("QKVParallelLinear", X, weights={"weight": weight, "bias": bias}, skip_bias_add=True)
    assert plain == pytest.approx(np.array(expected), rel=1e-12)
    assert biased == pytest.approx(np.array(expected) + bias, rel=1e-12)
    assert np.array_equal(plain, skipped)
    (row,) = given("VocabParallelEmbedding", [[4], [0]], weights={"weight": weight})
    assert np.array_equal(row, weight[[4, 0]])
    (logits,) = given("LogitsProcessor", X, weights={"lm_head.weight": weight}, width=3, scale=0.5)
    assert logits == pytest.approx(np.array(expected)[:, :3] * 0.5, rel=1e-12)


@pytest.mark.parametrize("neox", [True, False])
def test_rotary_embedding_turns_pairs(neox: bool) -> None:
    """Complex numbers, which the reference does not use; the last two of each head of six stay."""
    x, positions = RANDOM.normal(size=(3, 12)), np.array([[0], [3], [1000]])
    config = {"head_size": 6, "rotary_dim": 4, "base": 10000.0, "is_neox_style": neox}
    query, key = given("RotaryEmbedding", positions, x, x[:, :6], **config)
    assert np.array_equal(query[:, :6], key)
    for i, position in enumerate((0, 3, 1000)):
        for head in (0, 6):
            for pair in (0, 1):
                a, b = (pair, pair + 2) if neox else (2 * pair, 2 * pair + 1)
                angle = position / 10000 ** (pair / 2)
                turned = complex(x[i, head + a], x[i, head + b]) * complex(math.cos(angle), math.sin(angle))
                assert (query[i, head + a], query[i, head + b]) == pytest.approx(
                    (turned.real, turned.imag), rel=1e-11
                )
            assert np.array_equal(query[i, head + 4 : head + 6], x[i, head + 4 : head + 6])


ATTENTION = {"scale": 0.3, "num_heads": 4, "num_kv_heads": 2, "head_size": 3}


def test_attention_over_the_rows_before() -> None:
    """Two sequences in one table, their rows in another order; of one sequence a row is missing."""
    keys = make_rows([(0, 0, 1), (1, 0, 0), (0, 0, 0), (0, 0, 2), (2, 0, 1)])
    query, key, value = RANDOM.normal(size=(5, 12)), RANDOM.normal(size=(5, 6)), RANDOM.normal(size=(5, 6))
    attention = Attention(Site("a", "Attention", 1, config=ATTENTION), keys, key, value)
    assert attention.covered(keys).tolist() == [True, True, True, True, False]
    result = attention.rows(keys[:4], query[:4])
    before = {0: [2, 0], 1: [1], 2: [2], 3: [2, 0, 3]}
    for i, rows in before.items():
        for head in range(4):
            at = head // 2 * 3
            q = query[i, head * 3 : head * 3 + 3]
            weights = [math.exp(0.3 * math.fsum(q[d] * key[r, at + d] for d in range(3))) for r in rows]
            for d in range(3):
                expected = math.fsum(w * value[r, at + d] for w, r in zip(weights, rows, strict=True)) / math.fsum(
                    weights
                )
                assert result[i, head * 3 + d] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("operator", "config", "words"),
    [
        ("FusedMoE", {}, "no reference is known for FusedMoE"),
        ("YaRNScalingRotaryEmbedding", {}, "no reference is known"),
        ("RMSNorm", {"has_weight": False}, "its variance_epsilon was not recorded"),
        ("RMSNorm", {"variance_epsilon": 1.0}, "it has no parameter weight"),
        ("RMSNorm", {"variance_epsilon": 1.0, "variance_size_override": 4}, "over part of the row"),
        ("GeluAndMul", {"approximate": "quick"}, "is not known"),
        ("LogitsProcessor", {"soft_cap": 30.0}, "it caps its logits"),
    ],
)
def test_what_has_no_reference_says_why(operator: str, config: dict[str, Any], words: str) -> None:
    with pytest.raises(NoReference, match=words):
        given(operator, X, **config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": None}, "its scale was not recorded"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"logits_soft_cap": 50.0}, "logits_soft_cap"),
        ({"attn_type": "encoder_only"}, "encoder_only"),
        ({"scale": math.inf}, "not finite"),
    ],
)
def test_other_attention_has_no_reference(change: dict[str, Any], words: str) -> None:
    config = {name: value for name, value in {**ATTENTION, **change}.items() if value is not None}
    with pytest.raises(NoReference, match=words):
        Attention(Site("a", "Attention", 1, config=config), make_rows([]), X, X)


# -- who is nearer ------------------------------------------------------------------------------------------


def nearest(x: Any) -> Any:
    return x.astype(np.float32).astype(ml_dtypes.bfloat16)


def truncated(x: Any) -> Any:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)


def twice(x: Any) -> Any:
    """Rounded on the way, and again."""
    return nearest(nearest(x / 3).astype(np.float64) * 3)


def duel(golden: Any, candidate: Any, truth: Any) -> Duel:
    found = Duel()
    found.add(golden, candidate, (truth, truth), ("bfloat16", "bfloat16"))
    return found


def test_a_thousand_pairs_of_equally_rounded_results_are_equal() -> None:
    """Both rounded to nearest after errors of their own: half an ulp each, independent."""
    random = np.random.default_rng(5)
    said = []
    for _ in range(1000):
        truth = random.normal(size=(64, 32))
        noisy = [nearest(truth * (1 + random.normal(scale=2e-3, size=truth.shape))) for _ in range(2)]
        said.append(duel(*noisy, truth).nearer)
    assert said.count("equal") == 1000


@pytest.mark.parametrize("rows", [16, 200])
def test_truncation_is_told_from_rounding_every_time(rows: int) -> None:
    random = np.random.default_rng(6)
    for _ in range(50):
        truth = random.normal(size=(rows, 128))
        assert duel(truncated(truth), nearest(truth), truth).nearer == "candidate nearer"
        assert duel(nearest(truth), truncated(truth), truth).nearer == "golden nearer"
    found = duel(truncated(truth), nearest(truth), truth).errors
    assert found[0].lean_ulp == pytest.approx(-0.5, abs=0.02)
    assert found[1].lean_ulp == pytest.approx(0, abs=0.02)
    assert found[0].relative_l2 / found[1].relative_l2 == pytest.approx(2, rel=0.05)  # 1/3 against 1/12 ulp^2
    assert found[1].max_ulp <= 0.5


def test_one_rounding_is_nearer_than_two() -> None:
    truth = np.random.default_rng(7).normal(size=(100, 64))
    assert duel(twice(truth), nearest(truth), truth).nearer == "candidate nearer"


def test_few_rows_and_repeated_rows_decide_nothing() -> None:
    truth = np.random.default_rng(8).normal(size=(11, 128))
    assert duel(truncated(truth), nearest(truth), truth).nearer == "equal"
    repeated = np.repeat(truth, 20, axis=0)
    assert duel(truncated(repeated), nearest(repeated), repeated).nearer == "equal"


def test_the_same_result_is_equal_and_a_broken_one_is_not_nearer() -> None:
    truth = np.random.default_rng(9).normal(size=(40, 16))
    same = duel(nearest(truth), nearest(truth), truth)
    assert (same.nearer, same.rows) == ("equal", 40)
    broken = nearest(truth)
    broken[3, 5] = np.nan
    found = duel(broken, nearest(truth), truth)
    assert found.errors[0].relative_l2 == math.inf
    assert found.errors[1].relative_l2 < 1


# -- a verdict ----------------------------------------------------------------------------------------------


def test_a_recording_against_itself_is_equal_and_within_rounding(tmp_path: Path) -> None:
    golden = FIXTURES / "tiny-llama-v0.trace"
    verdict = compare_traces(golden, golden, oracle=True, model=FIXTURES / "tiny-llama")
    assert Verdict.from_dict(json.loads(json.dumps(verdict.as_dict()))) == verdict
    found = verdict.oracle
    assert found is not None
    assert not found.same_inputs
    assert {f.nearer for f in found.findings} == {"equal"}
    assert {f.operator: round(max(f.golden.lean_ulp, -1), 1) for f in found.findings}["SiluAndMul"] == -0.5
    linear = [f for f in found.findings if f.operator.endswith("Linear")]
    assert len(linear) == 20
    assert all(f.golden == f.candidate and 1e-3 < f.golden.relative_l2 < 2e-3 for f in linear)
    embedding = next(f for f in found.findings if f.operator == "VocabParallelEmbedding")
    assert embedding.golden.relative_l2 == 0
    assert {(n.operator, n.reason) for n in found.not_covered} == {("Attention", "its scale was not recorded")}
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    report.render(found, console)
    text = console.export_text()
    assert "each on its own inputs" in text
    assert "no reference: Attention (5 sites): its scale was not recorded" in text


def test_without_the_weights_their_operators_are_left_out_and_say_so() -> None:
    golden = FIXTURES / "tiny-llama-v0.trace"
    found = compare_traces(golden, golden, oracle=True, model=FIXTURES / "none").oracle
    assert found is not None
    assert {f.operator for f in found.findings} == {"SiluAndMul", "RotaryEmbedding"}
    assert any("no model directory" in n.reason for n in found.not_covered)
