"""Reproducers are readable, complete, and hold nothing that a stranger wrote into them as code."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tracereplay import open_trace
from tracereplay.alone.constants import Constants
from tracereplay.errors import TracereplayError, UsageError
from tracereplay.event import Kernel, Opaque, Value
from tracereplay.report.repro import (
    choose_call,
    choose_kernel,
    reproduce_kernel,
    reproduce_operator,
    write_reproducer,
)
from tracereplay.trace import Trace
from tracereplay.trace.manifest import write_manifest
from tracereplay.trace.parameters import Parameters

FIXTURES = Path(__file__).parents[2] / "fixtures"
ADD = "aten::add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"


@pytest.fixture(scope="module")
def golden() -> Iterator[Trace]:
    trace = open_trace(FIXTURES / "tiny-llama-v0-kernels.trace")
    yield trace
    trace.close()


def tensor(array: Any, strides: tuple[int, ...] | None = None, storage: int = -1, start: int = 0) -> Value:
    array = np.ascontiguousarray(array, np.float32)
    natural = tuple(s // 4 for s in array.strides)
    return Value("float32", array.shape, strides or natural, array.tobytes, storage, start)


def kernel(*arguments: Any, name: str = "aten.add.Tensor", schema: str = ADD, **keywords: Any) -> Kernel:
    return Kernel(name, schema, "model.norm", 0, -1, arguments, keywords, (tensor([3.0]),))


# What newer recordings say of the same attention.
ATTENTION = {"num_heads": 4, "num_kv_heads": 2, "head_size": 32, "scale": 32**-0.5}


def script_of(golden: Trace, call: Kernel) -> str:
    return reproduce_kernel(golden, 0, call, Constants(golden, model=FIXTURES / "tiny-llama")).script


def calls(script: str) -> list[str]:
    """Everything that the script calls, by its text."""
    return [ast.unparse(node.func) for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)]


def test_a_reproducer_contains_inputs_expected_outputs_and_a_script(golden: Trace, tmp_path: Path) -> None:
    chosen, count = choose_kernel(golden, "model.layers.0.self_attn.rotary_emb", "_C.rotary_embedding", 1)
    assert count == 1
    found = reproduce_kernel(golden, 1, chosen, Constants(golden, model=FIXTURES / "tiny-llama"))
    write_reproducer(found, tmp_path / "repro")
    script = (tmp_path / "repro" / "repro.py").read_text()
    assert len(script.splitlines()) < 100
    assert "tracereplay" not in script
    assert "vllm 0.8.5.post2+cpu, torch 2.6.0" in script
    assert script.count(".as_strided((2, 128), (256, 1), 0)") == 1
    assert set(found.expected) == {"query after the call", "key after the call"}
    tables = [name for name in found.inputs if name.endswith("cos_sin_cache")]
    assert len(tables) == 1
    with pytest.raises(UsageError, match="is not empty"):
        write_reproducer(found, tmp_path / "repro")


def test_a_script_passes_the_recorded_arguments(golden: Trace, tmp_path: Path) -> None:
    shared = tensor([[1, 2], [3, 4]], (4, 1), 9, 2), tensor([7, 8], None, 9, 4)
    call = kernel(*shared, alpha=2.5, name="aten.add.Tensor")
    found = reproduce_kernel(golden, 0, call, Constants(golden))
    write_reproducer(found, tmp_path / "repro")
    memory = load_file(tmp_path / "repro" / "inputs.safetensors")["memory 9 of float32"]
    assert memory.tolist() == [1, 2, 7, 8, 3, 4]
    assert '    inputs["memory 9 of float32"].as_strided((2, 2), (4, 1), 0),' in found.script
    assert '    inputs["memory 9 of float32"].as_strided((2,), (1,), 2),' in found.script
    assert '"alpha": 2.5,' in found.script
    assert load_file(tmp_path / "repro" / "expected.safetensors")["output 0"].tolist() == [3]


def test_arguments_that_are_not_tensors_become_python_expressions(golden: Trace) -> None:
    state = Value("uint8", (4,), (1,), lambda: b"1234")
    script = script_of(
        golden,
        kernel(tensor([1]), (tensor([2]), None, tensor([3])), float("-inf"), 1 - 2j, Opaque("dtype", "bfloat16"),
               generator=Opaque("Generator", "cpu", state), device=Opaque("device", "cuda:0"), text="a\"b\n"),
    )  # fmt: skip
    lines = {line.strip() for line in script.splitlines()}
    passed = '[inputs["other 0"], None, inputs["other 2"]],', 'float("-inf"),', "(1-2j),", "torch.bfloat16,"
    assert lines >= {*passed, '"device": torch.device("cuda:0"),', """"text": 'a"b\\n',"""}
    assert 'torch.default_generator.set_state(inputs["state of generator"])' in lines


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "aten.from_file.default"}, "it opens a file"),
        ({"name": "x.y.z", "schema": "x::y.z(int data_ptr) -> ()"}, "'data_ptr' stands for"),
        ({"name": "triton.k", "schema": ""}, "launched without the dispatcher"),
        ({"name": "triton.k", "schema": "ops.k(x_ptr, n)"}, "it is written in Triton"),
        ({"keywords": {"a=1)\nimport os #": 1}}, "an argument is named"),
        ({"keywords": {"dtype": Opaque("dtype", "float32)\nimport os")}}, "which torch does not have"),
        ({"outputs": ()}, "none of its results was recorded"),
    ],
)
def test_reports_calls_that_cannot_be_reproduced(golden: Trace, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        script_of(golden, replace(kernel(tensor([1]), tensor([2])), **change))


def test_text_from_a_trace_never_becomes_code(golden: Trace) -> None:
    clean = script_of(golden, kernel(tensor([1]), tensor([2])))
    evil = '"""\nimport os\nos.system("x")\n"""\\'
    hostile = replace(kernel(tensor([1]), evil), site=evil)
    assert calls(script_of(golden, hostile)) == calls(clean)
    schema = "aten::add.Tensor(Tensor lambda, Tensor inputs) -> Tensor"
    ast.parse(script_of(golden, kernel(tensor([1]), tensor([2]), schema=schema)))


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("mine.scale.default", "mine::scale(Tensor x) -> Tensor"),
        ("load_library.__call__.__call__", "load_library::__call__(str path) -> Tensor"),
        ("load_library.__call__.__call__", "load_library::__call__(Tensor x) -> Tensor"),
        ("_ops.import_module.x", "_ops::import_module(Tensor x) -> Tensor"),
        ("aten.add.Tensor(); import os; os", ADD),
    ],
)
def test_an_unlisted_kernel_is_refused(golden: Trace, name: str, schema: str) -> None:
    with pytest.raises(TracereplayError, match=r"known to be safe|another kernel|stands for|a file") as raised:
        script_of(golden, kernel(tensor([1]), name=name, schema=schema))
    assert raised.value.exit_code in (2, 5)


def test_names_in_a_trace_never_become_names_in_a_script(golden: Trace) -> None:
    evil = 'x\\"] + __import__("os").system("touch y") #'
    schema = "aten::add.Tensor(Tensor self, Tensor eval, *, Scalar exec=1) -> Tensor"
    call = kernel(tensor([1]), tensor([2]), schema=schema, exec=2)
    script = script_of(golden, replace(call, written={0: tensor([5])}, site=evil))
    plain = {node.id for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Name)}
    assert not plain & {"self", "eval", "exec", "__import__"}
    assert '"exec": 2,' in script


def test_a_script_states_at_its_top_what_it_loads_and_runs(golden: Trace) -> None:
    found = reproduce_kernel(golden, 0, kernel(tensor([1]), tensor([2])), Constants(golden))
    head = found.script.partition('"""\n\nimport json')[0]
    assert "It loads inputs.safetensors and expected.safetensors" in head
    assert "runs PyTorch's operator aten.add.Tensor." in found.loads


@pytest.mark.parametrize(
    ("site", "name", "step", "words"),
    [
        ("model.no", "aten.mm", 0, "no site"),
        ("model.norm", "aten.mm", 0, "those that did"),
        ("model.norm", "_C.*", 99, "has no step 99; its steps are 0 to 2"),
    ],
)
def test_refuses_a_selection_without_matches_and_lists_what_exists(
    golden: Trace, site: str, name: str, step: int, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        choose_kernel(golden, site, name, step)
    with pytest.raises(UsageError, match="occurrence counts from 0"):
        choose_kernel(golden, "model.norm", "aten.detach", 0, 5)


# -- operators ----------------------------------------------------------------------------------------------


def of_operator(golden: Trace, site: str, **changes: Any) -> Any:
    call, _ = choose_call(golden, site, 1)
    operator = replace(golden.sites("record")[site], **changes)
    return reproduce_operator(golden, 1, operator, call, Parameters(golden, FIXTURES / "tiny-llama"))


def test_an_operator_is_built_with_its_configuration_and_weights(golden: Trace) -> None:
    found = of_operator(golden, "model.layers.0.self_attn.qkv_proj")
    assert "['vllm.model_executor.layers.linear']" in found.script
    assert '"QKVParallelLinear"' in found.script
    for line in ("hidden_size=128,", "total_num_kv_heads=2,", "bias=False,"):
        assert line in found.script
    assert found.inputs["weights.weight"].shape == (256, 128)
    assert set(found.expected) == {"output 0"}
    ast.parse(found.script)
    norm = of_operator(golden, "model.layers.1.input_layernorm")
    assert "eps=1e-05," in norm.script
    assert {"output 0", "output 1"} == set(norm.expected)


@pytest.mark.parametrize(
    ("site", "changes", "words"),
    [
        ("model.layers.0.self_attn.attn", {}, "Attention"),
        ("model.layers.0.self_attn.attn", {"config": ATTENTION}, "uses state that its engine keeps between calls"),
        ("model.norm", {"operator": "os.system"}, "are not rebuilt"),
        (
            "model.norm",
            {"config": {"hidden_size": "128), __import__('os')", "variance_epsilon": 1e-5}},
            "was expected",
        ),
    ],
)
def test_an_operator_that_cannot_be_built_says_why(
    golden: Trace, site: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        of_operator(golden, site, **changes)


def compiled(tmp_path: Path, **settings: Any) -> Path:
    """The recording, as if its engine had compiled the model."""
    path = tmp_path / "compiled.trace"
    shutil.copytree(FIXTURES / "tiny-llama-v0-kernels.trace", path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["run"]["engine"]["settings"] |= {"enforce_eager": False, **settings}
    (path / "manifest.json").write_bytes(write_manifest(manifest))
    return path


def test_a_compiled_recording_says_why_compilation_alone_differs(golden: Trace, tmp_path: Path) -> None:
    site = "model.layers.1.input_layernorm"
    eager = of_operator(golden, site)
    assert (eager.caution, "CAUTION" in eager.script, "compiled" in eager.script) == (None, False, False)
    with closing(open_trace(compiled(tmp_path, compilation_mode="DYNAMO_TRACE_ONCE"))) as trace:
        found = of_operator(trace, site)
        chosen, _ = choose_kernel(trace, site, "_C.*", 1)
        kernel = reproduce_kernel(trace, 1, chosen, Constants(trace, model=FIXTURES / "tiny-llama"))
    for words in (
        "compiled its model (compilation_mode DYNAMO_TRACE_ONCE)",
        "fuses an operator with its neighbours",
    ):
        assert words in str(found.caution)
    module = ast.parse(found.script)
    said = " ".join(str(ast.get_docstring(module)).split())
    assert str(found.caution) in said
    assert "compiled (compilation_mode DYNAMO_TRACE_ONCE)" in said
    body = ast.unparse(next(node for node in module.body if getattr(node, "name", "") == "main"))
    assert "if not all(same):\n        print(CAUTION)" in body
    assert kernel.caution is None  # it was dispatched, so it ran as it does in the script


def test_a_strangers_compilation_mode_is_text(golden: Trace, tmp_path: Path) -> None:
    evil = '"""\nimport os\nos.system("x")\n"""\\'
    with closing(open_trace(compiled(tmp_path, compilation_mode=evil))) as trace:
        script = of_operator(trace, "model.norm").script
    clean = of_operator(golden, "model.norm").script
    assert set(calls(script)) - set(calls(clean)) == set()


def test_a_strangers_site_name_is_text(golden: Trace) -> None:
    call, _ = choose_call(golden, "model.norm", 1)
    site = golden.sites("record")["model.norm"]
    evil = replace(site, name='"""\nimport os\nos.system("x")\n"""')
    parameters = Parameters(golden, FIXTURES / "tiny-llama")
    scripts = [reproduce_operator(golden, 1, s, call, parameters).script for s in (site, evil)]
    assert calls(scripts[0]) == calls(scripts[1])
