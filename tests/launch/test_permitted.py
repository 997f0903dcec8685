"""Only kernels that are known to be safe are executed, with arguments that keep them within their memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracereplay import open_trace
from tracereplay.alone.permitted import changed, refusal, shapes_of
from tracereplay.event import Kernel, LeftOut, Named, Opaque, Value

GOLDEN = Path(__file__).parents[2] / "fixtures" / "tiny-llama-v0-kernels.trace"
ADD = "aten::add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"
NORM = "_C::rms_norm(Tensor($0! -> ) out, Tensor input, Tensor weight, float epsilon) -> ()"
ROTARY = (
    "_C::rotary_embedding(Tensor positions, Tensor($0! -> ) query, Tensor($1! -> ) key, int head_size, "
    "Tensor cos_sin_cache, bool is_neox, int rope_dim_offset=0) -> ()"
)


def tensor(*shape: int, dtype: str = "bfloat16", strides: tuple[int, ...] | None = None, start: int = 0) -> Value:
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Value(dtype, shape, strides, lambda: pytest.fail("a tensor was read"), 1, start)


def integers(*values: int) -> Value:
    return Value("int64", (len(values),), (1,), np.array(values, np.int64).tobytes)


def kernel(name: str, schema: str, *arguments: Any, failed: str = "", **keywords: Any) -> Kernel:
    return Kernel(name, schema, "model.norm", 0, -1, arguments, keywords, (), failed=failed)


def test_what_engines_compute_with_is_executed_and_what_is_not_has_a_reason() -> None:
    trace = open_trace(GOLDEN)
    found: dict[str, set[str | None]] = {}
    for step in trace.steps("record"):
        for k in step.kernels:
            found.setdefault(k.name, set()).add(refusal(k))
    executed = {name for name, reasons in found.items() if None in reasons}
    assert {"aten.mm.default", "aten.embedding.default", "_C.fused_add_rms_norm.default"} <= executed
    assert {"_C.rms_norm.default", "_C.silu_and_mul.default", "_C.rotary_embedding.default"} <= executed
    assert set(found) - executed == {
        "vllm.unified_attention.default", "_C_cache_ops.reshape_and_cache.default", "_C.paged_attention_v1.default"
    }  # fmt: skip
    assert found["aten.select.int"] == {None, "the engine's key/value cache was not recorded"}


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (kernel("aten.from_file.default", "aten::from_file(str filename, bool? shared=None) -> Tensor", "/x"),
         "opens a file"),
        (kernel("aten.from_file.out", "aten::from_file.out(str filename) -> Tensor", "/x"), "it opens a file"),
        (kernel("aten.set_.source_Tensor", "aten::set_.source_Tensor(Tensor a) -> Tensor", tensor(1)),
         "other memory"),
        (kernel("_C.onednn_mm.default", "_C::onednn_mm(Tensor c, Tensor handler_tensor) -> ()"), "the address"),
        (kernel("x.copy.default", "x::copy(int data_ptr, int size) -> Tensor", 1, 2), "'data_ptr' stands for"),
        (kernel("x.free.default", "x::free(int n) -> ()", 1), "not among the kernels"),
        (kernel("aten.system.default", "aten::system(str command) -> ()", "true"), "not among the kernels"),
        (kernel("os.system.default", "aten::add(Tensor a) -> Tensor", tensor(1)), "not among the kernels"),
        (kernel("triton.softmax", "", tensor(1)), "written in Triton, and was launched without the dispatcher"),
        (kernel("triton.add", "ops.add(x_ptr, n)", x_ptr=tensor(1), n=1), "written in Triton"),
        (kernel("triton.add", ADD, tensor(1), tensor(1)), "written in Triton"),
        (kernel("ops.launched", "", tensor(1)), "it was launched without the dispatcher"),
        (kernel("compiled.region", "", operators=9), "a compiled graph"),
        (kernel("aten.add.Tensor", ADD.replace("other", "ptr"), tensor(1), tensor(1)), "'ptr' stands for"),
        (kernel("aten.add.Tensor", ADD.replace("add", "sub"), tensor(1), tensor(1)), "schema is that of another"),
        (kernel("aten.add.Tensor", "aten::add.Tensor", tensor(1), tensor(1)), "its schema has no arguments"),
        (kernel("aten.add.Tensor", ADD, tensor(1), failed="RuntimeError"),
         "raised RuntimeError when it was recorded"),
        (kernel("aten.add.Tensor", ADD, tensor(1), LeftOut("bfloat16", (9,), "the engine's key/value cache")),
         "cache was not"),
        (kernel("aten.add.Tensor", ADD, tensor(1), Opaque("ScriptObject")), "'ScriptObject' cannot"),
        (kernel("aten.add.Tensor", ADD, tensor(1 << 20, 1 << 20), tensor(1)), "the limit is"),
        (kernel("aten.add.Tensor", ADD, tensor(2, strides=(1 << 40,)), tensor(1)), "the limit is"),
        (kernel("aten.add.Tensor", ADD, tensor(2, start=1 << 60), tensor(1)), "the limit is"),
        (kernel("aten.add.Tensor", ADD, Named("w", "bfloat16", (1 << 60,), (1,), 0)), "the limit is"),
        (kernel("aten.zeros.default", "aten::zeros(SymInt[] size) -> Tensor", (1 << 20, 1 << 20)),
         "asks for more"),
        (kernel("aten.expand.default", "aten::expand(Tensor a, SymInt[] size) -> Tensor", tensor(1), (1 << 62, 2)),
         "asks for"),
        (kernel("aten.arange.default", "aten::arange(Scalar end) -> Tensor", 1e30), "asks for more"),
        (kernel("aten.randperm.default", "aten::randperm(SymInt n) -> Tensor", 1 << 62), "asks for more"),
        (kernel("_C.rms_norm.default", NORM, tensor(4, 8), tensor(4, 8), tensor(4), 1e-5),
         "'weight' has the shape (4,)"),
        (kernel("_C.rms_norm.default", NORM, tensor(4, 8), tensor(5, 8), tensor(8), 1e-5),
         "'input' has the shape (5, 8)"),
        (kernel("_C.rms_norm.default", NORM, tensor(4, 8), tensor(4, 8), 3, 1e-5), "'weight' is not a tensor"),
        (kernel("_C.rms_norm.default", NORM, tensor(4, 8), tensor(4, 8), tensor(8), tensor(1)),
         "'epsilon' is a tensor"),
        (kernel("_C.rms_norm.default", NORM, tensor(), tensor(), tensor(8), 1e-5), "'out' has the shape ()"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)  # fmt: skip
def test_what_is_refused(refused: Kernel, words: str) -> None:
    assert words in str(refusal(refused))


def rotary(head_size: int = 4, key: int = 8, table: tuple[int, int] = (16, 4), **more: Any) -> Kernel:
    values = integers(0, 3), tensor(2, 16), tensor(2, key), head_size, tensor(*table), True
    return kernel("_C.rotary_embedding.default", ROTARY, *values, **more)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"rope_dim_offset": 0}, None),
        ({"rope_dim_offset": 100}, "'rope_dim_offset' is 100"),
        ({"head_size": 3}, "does not fit head_size = 3"),
        ({"head_size": 0}, "does not fit head_size = 0"),
        ({"head_size": -4}, "does not fit head_size = -4"),
        ({"key": 6}, "(2, 6) of its argument 'key'"),
        ({"table": (16, 8)}, "(16, 8) of its argument 'cos_sin_cache'"),
    ],
)
def test_what_a_rotary_embedding_takes(changes: Mapping[str, Any], words: str | None) -> None:
    found = refusal(rotary(**changes))
    assert found is None if words is None else words in str(found)


@pytest.mark.parametrize(("positions", "valid"), [((0, 15), True), ((0, 16), False), ((-1, 3), False)])
def test_positions_lie_in_the_table(positions: tuple[int, int], valid: bool) -> None:
    call = rotary()
    arguments = {**call.by_name(), "positions": integers(*positions)}
    shapes = shapes_of(call)
    assert shapes is not None
    assert (shapes.wrong_values(arguments) is None) is valid


def test_arguments_have_the_schemas_names_or_their_places() -> None:
    assert kernel("aten.add.Tensor", ADD, 1, 2, alpha=3).by_name() == {"self": 1, "other": 2, "alpha": 3}
    assert kernel("x", "no schema", 1, 2, y=3).by_name() == {"0": 1, "1": 2, "y": 3}
    assert kernel("x", "x::y(int a) -> ()", 1, 2).by_name() == {"a": 1, "1": 2}


def test_a_renamed_kernel_is_known_by_its_new_name() -> None:
    old = kernel("_C_cpu.mla_decode_kvcache.default", "")
    assert changed(old).now == "_C.mla_decode_kvcache.default"
    assert changed(kernel("aten.mm.default", "")).now == "aten.mm.default"
    assert changed(rotary()).without == {"rope_dim_offset": 0, "inverse": False}
