"""Which recorded operators are rebuilt, and what is sent to have it done; nothing is executed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from tracereplay import open_trace
from tracereplay.alone.child.service import NotReplayable
from tracereplay.alone.operators import Operators, operator_requests
from tracereplay.alone.sandbox import Outcome, Sandbox
from tracereplay.engines.vllm.alone.known import KNOWN, plan
from tracereplay.event import Call, Site
from tracereplay.trace import Trace

FIXTURES = Path(__file__).parents[2] / "fixtures"
TINY = FIXTURES / "tiny-llama"


class Of(NamedTuple):
    """A tensor without elements."""

    dtype: str
    shape: tuple[int, ...]


NORM = {"hidden_size": 8, "variance_epsilon": 1e-5, "has_weight": True, "training": False}
LINEAR = {"input_size": 8, "output_size": 4, "skip_bias_add": False, "return_bias": True, "tp_size": 1}
QKV = {**LINEAR, "hidden_size": 8, "head_size": 2, "total_num_heads": 4, "total_num_kv_heads": 2}
TABLE = {"num_embeddings": 100, "embedding_dim": 8, "org_vocab_size": 100, "padding_size": 64}
ROTARY = {"head_size": 4, "rotary_dim": 4, "max_position_embeddings": 64, "base": 10000.0, "is_neox_style": True}


def weight(*shape: int, dtype: str = "bfloat16") -> dict[str, Of]:
    return {"weight": Of(dtype, shape)}


@pytest.fixture
def golden() -> Iterator[Trace]:
    found = open_trace(FIXTURES / "tiny-llama-v0.trace")
    yield found
    found.close()


class Fake:
    """A sandbox that notes what it is asked, and whose child dies when told to."""

    def __init__(self) -> None:
        self.starts = 1
        self.asked: list[dict[str, Any]] = []
        self.answer = Outcome("done", "", {"outputs": [], "written": {}})

    def run(self, handler: str, request: dict[str, Any]) -> Outcome:
        assert handler == "operator"
        self.asked.append(request)
        return self.answer

    def told(self) -> Counter[str]:
        return Counter(next(iter(request)) for request in self.asked)


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def operators(fake: Fake, golden: Trace) -> Operators:
    return Operators(cast(Sandbox, fake), plan, golden, TINY)


@pytest.mark.parametrize(
    ("operator", "config", "weights", "arguments"),
    [
        ("RMSNorm", NORM, weight(8), {"hidden_size": 8, "eps": 1e-5}),
        ("GemmaRMSNorm", {"variance_epsilon": 1e-6}, weight(8), {"hidden_size": 8, "eps": 1e-6}),
        ("GeluAndMul", {"approximate": "tanh"}, {}, {"approximate": "tanh"}),
        ("SiluAndMul", {"training": False, "unknown": "ignored"}, {}, {}),
        (
            "MergedColumnParallelLinear", LINEAR, weight(4, 8),
            {"input_size": 8, "output_sizes": [4], "gather_output": False, "bias": False, "skip_bias_add": False,
             "return_bias": True},
        ),
        (
            "QKVParallelLinear", QKV, {**weight(16, 8), "bias": Of("bfloat16", (16,))},
            {"hidden_size": 8, "head_size": 2, "total_num_heads": 4, "total_num_kv_heads": 2, "bias": True,
             "skip_bias_add": False, "return_bias": True},
        ),
        (
            "VocabParallelEmbedding", TABLE, weight(128, 8),
            {"num_embeddings": 100, "embedding_dim": 8, "org_num_embeddings": 100, "padding_size": 64},
        ),
        ("RotaryEmbedding", ROTARY, {}, ROTARY),
    ],
)  # fmt: skip
def test_an_operator_is_rebuilt_from_what_is_recorded(
    operator: str, config: Any, weights: Any, arguments: Any
) -> None:
    found = plan(operator, config, "bfloat16", weights)
    assert (found.operator, found.arguments, found.dtype) == (operator, arguments, "bfloat16")


@pytest.mark.parametrize(
    ("operator", "config", "weights", "words"),
    [
        ("os.system", {}, {}, "operators of the class os.system are not rebuilt"),
        ("CustomOp", {}, {}, "are not rebuilt"),
        ("RMSNorm", {**NORM, "hidden_size": "8"}, weight(8), "hidden_size of this RMSNorm is 8; a whole number"),
        ("RMSNorm", {**NORM, "hidden_size": True}, weight(8), "is True; a whole number"),
        ("RMSNorm", {**NORM, "hidden_size": 1 << 60}, weight(8), "a whole number from 1 to"),
        ("RMSNorm", {**NORM, "variance_epsilon": float("nan")}, weight(8), "is nan; a number from 0 to 1"),
        ("RMSNorm", {**NORM, "variance_epsilon": [1]}, weight(8), "a number from 0 to 1"),
        ("RMSNorm", {**NORM, "has_weight": 1}, weight(8), "true or false"),
        ("RMSNorm", {"variance_epsilon": 1e-5}, weight(8), "does not state the hidden_size"),
        ("RMSNorm", NORM, weight(9), "its weight has the shape (9,); (8,) was expected"),
        ("RMSNorm", NORM, weight(8, dtype="int64"), "its weight is of int64"),
        ("RMSNorm", NORM, {}, "names no weight"),
        ("GemmaRMSNorm", {"variance_epsilon": 1e-6}, weight(8, 8), "one dimension was expected"),
        ("GeluAndMul", {"approximate": "__import__"}, {}, "one of ['none', 'tanh'] was expected"),
        ("SiluAndMul", {}, weight(8), "it has a parameter 'weight'"),
        ("RowParallelLinear", {**LINEAR, "tp_size": 2}, weight(4, 8), "tensor parallel size 2"),
        ("RowParallelLinear", LINEAR, {"qweight": Of("int32", (4, 1))}, "names no weight"),
        ("RowParallelLinear", LINEAR, {**weight(4, 8), "scale": Of("bfloat16", (4,))}, "a parameter 'scale'"),
        ("RowParallelLinear", {**LINEAR, "input_size": 1 << 22, "output_size": 1 << 22},
         weight(1 << 22, 1 << 22), "has more than"),
        ("QKVParallelLinear", {**QKV, "total_num_kv_heads": 5}, weight(16, 8), "a whole number from 1 to 4"),
        ("QKVParallelLinear", QKV, weight(12, 8), "(16, 8) was expected"),
        ("VocabParallelEmbedding", TABLE, weight(500, 8), "(100, 8) or more was expected"),
        ("VocabParallelEmbedding", {**TABLE, "org_vocab_size": 101}, weight(128, 8), "from 1 to 100"),
        ("RotaryEmbedding", {**ROTARY, "max_position_embeddings": 1 << 26, "rotary_dim": 4, "head_size": 4},
         {}, "a table for 67108864 positions"),
        ("RotaryEmbedding", {**ROTARY, "rotary_dim": 3}, {}, "of 3 numbers is not made"),
        ("RotaryEmbedding", {**ROTARY, "base": -1.0}, {}, "is -1.0; a number from"),
    ],
)  # fmt: skip
def test_a_strangers_configuration_is_not_believed(operator: str, config: Any, weights: Any, words: str) -> None:
    with pytest.raises(NotReplayable) as error:
        plan(operator, config, "bfloat16", weights)
    assert words in str(error.value)


def test_it_is_rebuilt_in_a_dtype_that_engines_have() -> None:
    assert plan("RMSNorm", NORM, "bfloat16", weight(8, dtype="float32")).dtype == "float32"
    with pytest.raises(NotReplayable, match="not in complex64"):
        plan("SiluAndMul", {}, "complex64", {})
    with pytest.raises(NotReplayable, match="of bfloat16 and float32"):
        plan("ReplicatedLinear", LINEAR, "bfloat16", {**weight(4, 8), "bias": Of("float32", (4,))})


X, IDS = Of("bfloat16", (3, 8)), Of("int64", (3,))


@pytest.mark.parametrize(
    ("operator", "config", "weights", "inputs", "words"),
    [
        ("RMSNorm", NORM, weight(8), [], "given 0 tensors"),
        ("RMSNorm", NORM, weight(8), [X, None], "given 1 tensors of 2 inputs"),
        ("RMSNorm", NORM, weight(8), [Of("bfloat16", (3, 9))], "a last size of 8"),
        ("RMSNorm", NORM, weight(8), [Of("float32", (3, 8))], "bfloat16 was expected"),
        ("RMSNorm", NORM, weight(8), [X, Of("bfloat16", (2, 8))], "its residual is bfloat16 of shape (2, 8)"),
        ("SiluAndMul", {}, {}, [Of("bfloat16", (3, 7))], "cannot be halved"),
        ("SiluAndMul", {}, {}, [IDS], "its input is of int64"),
        ("RowParallelLinear", LINEAR, weight(4, 8), [Of("bfloat16", ())], "a last size of 8"),
        ("VocabParallelEmbedding", TABLE, weight(128, 8), [X], "int64 or int32 was expected"),
        ("RotaryEmbedding", ROTARY, {}, [IDS], "given 1 tensors"),
        ("RotaryEmbedding", ROTARY, {}, [IDS, Of("bfloat16", (4, 8))], "[rows, heads * 4] was expected"),
        ("RotaryEmbedding", ROTARY, {}, [IDS, Of("bfloat16", (3, 6))], "[rows, heads * 4] was expected"),
        ("RotaryEmbedding", ROTARY, {}, [IDS, X, Of("float32", (3, 8))], "bfloat16 was expected"),
        ("RotaryEmbedding", ROTARY, {}, [Of("int64", (3, 3)), X], "one dimension was expected"),
    ],
)
def test_a_kernel_that_checks_nothing_gets_nothing_that_does_not_fit(
    operator: str, config: Any, weights: Any, inputs: Any, words: str
) -> None:
    with pytest.raises(NotReplayable) as error:
        plan(operator, config, "bfloat16", weights).check(inputs)
    assert words in str(error.value)


def test_weights_are_sent_once_and_operators_without_them_are_one(
    golden: Trace, operators: Operators, fake: Fake
) -> None:
    """Ten linear layers twice, an embedding, norms; one rotary embedding and one activation serve all layers."""
    found = list(operator_requests(golden))
    outcomes = [operators.run(site, call) for _, site, call in found]
    weighty = {site.name for _, site, _ in found if site.parameters and site.operator in KNOWN}
    assert fake.told()["build"] == len(weighty) + 2
    assert fake.told()["call"] == sum(outcome.status == "done" for outcome in outcomes)
    refused = {site.operator for (_, site, _), o in zip(found, outcomes, strict=True) if o.status != "done"}
    assert refused == {"Attention", "LogitsProcessor", "Sampler"}
    sent = next(r for r in fake.asked if r.get("operator") == "QKVParallelLinear")
    assert sent["parameters"]["weight"].shape == (256, 128)
    assert sent["dtype"] == "bfloat16"


def test_of_too_many_weights_none_are_kept_but_what_has_no_weights_is(
    golden: Trace, operators: Operators, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attention that were forgotten would lose the keys and values of the calls before."""
    monkeypatch.setattr("tracereplay.alone.operators.KEPT", 300_000)
    for _, site, call in operator_requests(golden):
        operators.run(site, call)
    built = {r["build"]: r["operator"] for r in fake.asked if "build" in r}
    forgotten = {built[key] for r in fake.asked for key in r.get("forget", ())}
    assert "QKVParallelLinear" in forgotten
    assert not forgotten & {"RotaryEmbedding", "SiluAndMul", "Attention"}
    kept: set[int] = set()
    for request in fake.asked:
        kept = (kept | {request["build"]} if "build" in request else kept) - set(request.get("forget", ()))
        assert request.get("call", -1) in kept | {-1}


def first(golden: Trace, operator: str) -> tuple[Site, Call]:
    return next((site, call) for _, site, call in operator_requests(golden) if site.operator == operator)


def test_a_new_child_is_sent_everything_anew(golden: Trace, operators: Operators, fake: Fake) -> None:
    norm = first(golden, "RMSNorm")
    operators.run(*norm)
    operators.run(*norm)
    assert [next(iter(r)) for r in fake.asked] == ["build", "call", "call"]
    fake.starts = 2
    operators.run(*norm)
    assert [next(iter(r)) for r in fake.asked[3:]] == ["build", "call"]
    sent = fake.asked[-1]["inputs"][0]
    assert np.frombuffer(sent.data, np.uint16).size == np.prod(sent.shape)


def test_an_operator_that_cannot_be_built_is_not_tried_again(
    golden: Trace, operators: Operators, fake: Fake
) -> None:
    norm = first(golden, "RMSNorm")
    fake.answer = Outcome("crashed", "crashed: signal 11 (SIGSEGV)")
    assert [operators.run(*norm).status for _ in range(3)] == ["crashed"] * 3
    assert len(fake.asked) == 1


def test_what_does_not_fit_is_refused_before_it_is_sent(golden: Trace, operators: Operators, fake: Fake) -> None:
    site, call = first(golden, "RMSNorm")
    outcome = operators.run(site, replace(call, inputs=(call.inputs[0], call.inputs[0], call.inputs[0])))
    assert outcome.reason == "not replayable: it was given 3 tensors of 3 inputs; 1 or 2 were expected"
    assert "call" not in fake.told()


def test_weights_that_are_not_there_are_a_reason(golden: Trace, fake: Fake, tmp_path: Path) -> None:
    outcome = Operators(cast(Sandbox, fake), plan, golden, tmp_path).run(*first(golden, "RMSNorm"))
    assert outcome.status == "not replayable"
    assert "there is no tensor model.layers.0.input_layernorm.weight" in outcome.reason
    assert not fake.asked


def test_calls_are_chosen_by_site(golden: Trace) -> None:
    chosen = list(operator_requests(golden, "model.layers.1.mlp.*"))
    assert {site.name.rsplit(".", 1)[1] for _, site, _ in chosen} == {"gate_up_proj", "act_fn", "down_proj"}
    assert {number for number, _, _ in chosen} == {step.number for step in golden.steps("record")}
