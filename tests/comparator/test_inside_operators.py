"""From the operator to the kernel: which one is to blame, and what two other sequences have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_support import ROWS, call, tensor, write_pass
from rich.console import Console

from tracereplay.cli.show_kernels import show_kernels
from tracereplay.comparator import Policy
from tracereplay.comparator.kernels.inside import Place, look_inside
from tracereplay.comparator.kernels.inside.sequence import align, computing, inputs
from tracereplay.event import Kernel, RowKey, RowMap, Value, make_rows
from tracereplay.report import inside as report
from tracereplay.trace import Trace, TraceDirectory, open_trace
from tracereplay.verdict.inside import Inside

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(2, 64)).astype(np.float32)
PLACE = Place("model.norm", "RMSNorm", RowKey(0, 0, 1), 0, "first divergence", "model.norm")
SCHEMAS = {
    "_C.fused.default": "_C::fused(Tensor($0! -> ) input, Tensor($1! -> ) residual, float eps) -> ()",
    "_C.silu_and_mul.default": "_C::silu_and_mul(Tensor($0! -> ) out, Tensor input) -> ()",
    "aten.empty_like.default": "aten::empty_like(Tensor self) -> Tensor",
    "triton.scale": "ops.scale(x_ptr, y_ptr, kept_ptr, n, BLOCK: constexpr)",
    "aten.view.default": "aten::view(Tensor(a) self, SymInt[] size) -> Tensor(a)",
}


def schema(name: str) -> str:
    return SCHEMAS.get(name, "aten::f(Tensor self, Tensor other) -> Tensor")


def trace(path: Path, pass_name: str, calls: Sequence[Any], rows: RowMap = ROWS) -> Trace:
    directory = TraceDirectory(path, {"level": "kernel"})
    write_pass(directory, pass_name, calls, rows=rows, schema=schema)
    directory.complete()
    return open_trace(path)


def look(folder: Path, golden: Sequence[Any], candidate: Sequence[Any], rows: RowMap = ROWS) -> Inside:
    mine, theirs = (
        trace(folder / "g.trace", "record", golden),
        trace(folder / "c.trace", "injected", candidate, rows),
    )
    found = look_inside(mine, theirs, "injected", PLACE, Policy())
    assert Inside.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    return found


def chain(names: Sequence[str], start: Any = X, wrong: str = "", by: float = 1.02) -> list[Any]:
    """Kernels that each add one to what the one before gave; the result of ``wrong`` is a bit too large."""
    calls, value = [], start
    for name in names:
        result = (value + 1) * np.float32(by if name == wrong else 1)
        calls.append(call(f"aten.{name}.Tensor", [tensor(result)], arguments=[tensor(value)]))
        value = result
    return calls


FIVE = ("add", "mul", "sub", "div", "neg")


def test_the_third_of_five_kernels_is_named_and_the_rest_inherits(tmp_path: Path) -> None:
    found = look(tmp_path, chain(FIVE), chain(FIVE, wrong="sub"))
    assert found.alike
    assert found.first == 2
    assert [row.error_class for row in found.rows] == ["identical", "identical", "exceeds", "exceeds", "exceeds"]
    assert [row.inputs for row in found.rows] == ["identical"] * 3 + ["exceeds"] * 2
    assert (found.tokens, found.rows[0].result) == (2, "float32[2, 64]")


def test_a_kernel_that_exceeds_is_named_before_one_that_rounds(tmp_path: Path) -> None:
    golden, candidate = chain(FIVE), chain(FIVE)
    rounded = np.nextafter(np.frombuffer(golden[0]["outputs"][0].data, np.float32).reshape(2, 64), np.float32(99))
    candidate[0] = call("aten.add.Tensor", [tensor(rounded)], arguments=golden[0]["arguments"])
    assert look(tmp_path / "a", golden, candidate).first == 0
    candidate[3:] = chain(("div", "neg"), X + 3, wrong="div")
    found = look(tmp_path / "b", golden, candidate)
    assert (found.first, found.rows[0].error_class, found.rows[3].error_class) == (3, "rounding", "exceeds")


def test_what_arrives_wrong_is_no_kernels_fault(tmp_path: Path) -> None:
    found = look(tmp_path, chain(FIVE), chain(FIVE, X * 2))
    assert found.first is None
    assert {row.inputs for row in found.rows} == {"exceeds"}


def test_sequences_of_unequal_length_are_aligned(tmp_path: Path) -> None:
    longer = ("add", "exp", "mul", "sub", "log", "div", "neg")
    golden = chain(FIVE)
    candidate = [
        *golden[:1],
        *chain(("exp",)),
        *golden[1:3],
        *chain(("log",)),
        *chain(("div", "neg"), X + 3, "div"),
    ]
    assert [c["name"].split(".")[1] for c in candidate] == list(longer)
    found = look(tmp_path, golden, candidate)
    names = [
        (row.golden and row.golden.split(".")[1], row.candidate and row.candidate.split(".")[1])
        for row in found.rows
    ]
    assert names == [
        ("add", "add"),
        (None, "exp"),
        ("mul", "mul"),
        ("sub", "sub"),
        (None, "log"),
        ("div", "div"),
        ("neg", "neg"),
    ]
    assert found.first == 5
    assert not found.alike


def bf16(array: Any) -> Any:
    """Rounded to bfloat16, as its bits."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def test_other_kernels_are_compared_at_the_values_that_both_compute(tmp_path: Path) -> None:
    """One fused kernel that writes in place, against a chain in float32."""
    total = X + 1
    normed = total / np.sqrt((total**2).mean(axis=1, keepdims=True))
    arguments = [tensor(bf16(X), "bfloat16"), tensor(bf16(np.ones_like(X)), "bfloat16"), 1e-5]
    golden = [
        call(
            "_C.fused.default",
            written={0: tensor(bf16(normed), "bfloat16"), 1: tensor(bf16(total), "bfloat16")},
            arguments=arguments,
        )
    ]
    candidate = [
        call("aten.add.Tensor", [tensor(total)], arguments=[tensor(X)]),
        call("aten._to_copy.default", [tensor(bf16(total), "bfloat16")], arguments=[tensor(total)]),
        call("aten.rsqrt.default", [tensor(np.ones((2, 1)))], arguments=[tensor(X[:, :1])]),
        call("aten.mul.Tensor", [tensor(normed)], arguments=[tensor(total)]),
        call("aten._to_copy.default", [tensor(bf16(normed * 1.0001), "bfloat16")], arguments=[tensor(normed)]),
    ]
    found = look(tmp_path, golden, candidate)
    assert (found.rows[0].golden, found.rows[0].candidate) == ("_C.fused.default", None)
    assert len(found.rows) == 6
    shared = {value.result: (value.candidate, value.error_class) for value in found.shared}
    assert shared == {"input bfloat16[2, 64]": (5, "rounding"), "residual bfloat16[2, 64]": (2, "identical")}
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    report.render(found, console)
    text = console.export_text()
    assert "Values that both sides compute:" in text
    assert "1: residual bfloat16[2, 64]" in text


def test_rows_are_found_in_other_batches(tmp_path: Path) -> None:
    """The candidate's batch has golden's rows in another order, one of them, and one more."""
    rows = make_rows([(7, 0, 0), (0, 0, 1), (0, 0, 0)])
    other = np.concatenate([RANDOM.normal(size=(1, 64)).astype(np.float32), X[::-1]])
    found = look(tmp_path / "a", chain(FIVE), chain(FIVE, other), rows)
    assert {row.error_class for row in found.rows} == {"identical"}
    assert found.tokens == 2
    alone = look(tmp_path / "b", chain(FIVE), chain(FIVE, X[1:], wrong="mul"), make_rows([(0, 0, 1)]))
    assert (alone.tokens, alone.first) == (1, 1)


def test_memory_that_is_only_written_is_no_input(tmp_path: Path) -> None:
    sides = [
        call("_C.silu_and_mul.default", written={0: tensor(X * by)}, arguments=[tensor(garbage), tensor(X)])
        for by, garbage in ((np.float32(1), X * 0), (np.float32(1.1), X * 0 + 9))
    ]
    found = look(tmp_path, sides[:1], sides[1:])
    assert (found.first, found.rows[0].inputs) == (0, "identical")


def scaled(by: float, garbage: float, kept: Any = X, changed: Any = None) -> list[Any]:
    """An operator that allocates memory, views it, and has a Triton kernel write there, and maybe elsewhere."""
    fresh = X * 0 + np.float32(garbage)
    allocated, viewed = ([tensor(fresh, storage=5)] for _ in range(2))
    pointers = {
        "x_ptr": tensor(X, storage=1),
        "y_ptr": tensor(fresh, storage=5),
        "kept_ptr": tensor(kept, storage=2),
    }
    written = {1: tensor(X * np.float32(by), storage=5)} | ({} if changed is None else {2: tensor(changed)})
    return [
        call("aten.empty_like.default", allocated, arguments=[tensor(X, storage=1)]),
        call("aten.view.default", viewed, arguments=[*allocated, ["l", [2, 64]]]),
        call("triton.scale", written=written, keywords={**pointers, "n": 128, "BLOCK": 64, "grid": ["l", [2]]}),
        call(
            "aten.add.Tensor", [tensor(X * np.float32(by) + 1)], arguments=[tensor(X * np.float32(by), storage=5)]
        ),
    ]


def test_a_triton_kernel_is_named_whatever_its_fresh_memory_held(tmp_path: Path) -> None:
    found = look(tmp_path, scaled(2, garbage=0), scaled(2.1, garbage=7))
    assert [row.golden for row in found.rows] == ["triton.scale", "aten.add.Tensor"]
    assert (found.first, found.alike) == (0, True)
    assert [(row.inputs, row.error_class) for row in found.rows] == [
        ("identical", "exceeds"),
        ("exceeds", "exceeds"),
    ]
    assert found.rows[0].result == "float32[2, 64]"


def test_what_a_triton_kernel_changes_on_one_side_only_is_compared_with_what_the_other_left(
    tmp_path: Path,
) -> None:
    for place, sides in enumerate(((X + 1, None), (None, X + 1))):
        golden, candidate = (scaled(2, 0, changed=changed) for changed in sides)
        found = look(tmp_path / str(place), golden, candidate)
        assert (found.first, found.rows[0].inputs, found.rows[0].error_class) == (0, "identical", "exceeds")
    same = look(tmp_path / "kept", scaled(2, 0, kept=X, changed=X + 1), scaled(2, 0, kept=X + 1))
    assert (same.first, same.rows[0].inputs, same.rows[0].error_class) == (None, "exceeds", "identical")


def test_show_names_what_a_triton_kernel_was_given_and_wrote(tmp_path: Path) -> None:
    source = trace(tmp_path / "g.trace", "record", scaled(2, 0))
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    show_kernels(source, "record", "model.norm", console, step=None, first_steps=None)
    text = console.export_text()
    (line,) = [line for line in text.splitlines() if line.startswith("triton.scale  ")]
    assert "x_ptr=float32[2, 64] @1, y_ptr=float32[2, 64] @5" in line
    assert "n=128, BLOCK=64, grid=[2]" in line
    assert line.rstrip().endswith("y_ptr written: float32[2, 64] @5")
    assert "triton.scale is ops.scale" in text


def test_arguments_are_paired_by_name_where_a_version_has_more(tmp_path: Path) -> None:
    golden, candidate = scaled(2, 0), scaled(2, 0)
    candidate[2]["keywords"] = {"mask_ptr": tensor(X * 9), **candidate[2]["keywords"]}
    candidate[2]["written"] = {2: candidate[2]["written"][1]}
    found = look(tmp_path, golden, candidate)
    assert {(row.inputs, row.error_class) for row in found.rows} == {("identical", "identical")}


def test_pointers_that_are_called_outputs_are_only_written(tmp_path: Path) -> None:
    """Memory that is used in each step holds what the last step left."""
    sides = [
        call(
            "triton.k",
            keywords={"x_ptr": tensor(X), name: tensor(X * old)},
            written={1: tensor(X * np.float32(by))},
        )
        for name in ("output_ptr", "out_ptr0")
        for old, by in ((3, 1), (4, 1.1))
    ]
    for place in (0, 2):
        found = look(tmp_path / str(place), sides[place : place + 1], sides[place + 1 : place + 2])
        assert (found.first, found.rows[0].inputs) == (0, "identical")


def test_a_launch_of_an_older_trace_has_numbers_for_names(tmp_path: Path) -> None:
    old = [call("triton.k", arguments=[tensor(X), tensor(X * 0), 2], written={1: tensor(X * by)}) for by in (1, 2)]
    found = look(tmp_path, old[:1], old[1:])
    assert (found.first, found.rows[0].golden) == (0, "triton.k")


def test_what_only_looks_at_memory_is_left_out(tmp_path: Path) -> None:
    views = [
        call("aten.view.default", [tensor(X)]),
        call("aten.empty.memory_format", [tensor(X)]),
        call("aten.detach.default", [tensor(X)]),
    ]
    found = look(tmp_path, [*views, *chain(("add",))], chain(("add",)))
    assert [row.golden for row in found.rows] == ["aten.add.Tensor"]


@pytest.mark.parametrize(
    ("rows", "candidate", "words"),
    [(make_rows([(5, 0, 0), (5, 0, 1)]), chain(FIVE), "no such call"), (ROWS, [], "no kernels were recorded")],
)
def test_what_cannot_be_compared_is_said(tmp_path: Path, rows: RowMap, candidate: list[Any], words: str) -> None:
    found = look(tmp_path, chain(FIVE), candidate, rows)
    assert words in str(found.not_compared)
    assert found.rows == ()


def kernel(name: str, dtype: str = "float32", parent: int = -1) -> Kernel:
    output = Value(dtype, (2,), (1,), bytes)
    return Kernel(f"aten.{name}.default", "aten::f(Tensor a) -> Tensor", "s", 0, parent, (), {}, (output,))


def test_alignment_is_the_longest_and_prefers_the_same_dtype() -> None:
    golden = [kernel("a"), kernel("b"), kernel("c")]
    assert align(golden, golden) == [(0, 0), (1, 1), (2, 2)]
    assert align(golden, []) == [(0, None), (1, None), (2, None)]
    assert align([], golden) == [(None, 0), (None, 1), (None, 2)]
    assert align(golden, [kernel("b"), kernel("c"), kernel("a")]) == [(0, None), (1, 0), (2, 1), (None, 2)]
    wide = [kernel("a", "bfloat16"), kernel("a", "float32"), kernel("b")]
    assert align([kernel("a"), kernel("b")], wide) == [(None, 0), (0, 1), (1, 2)]


def test_kernels_within_others_are_those_of_the_call_wherever_it_is_in_the_step(tmp_path: Path) -> None:
    """Parents are places in the step; here two kernels of another call come before."""
    before = [{**kernel, "number": 1} for kernel in chain(("neg", "exp"))]
    inner = [{**kernel, "parent": 2} for kernel in chain(("add", "mul"))]
    found = look(tmp_path, [*before, *chain(("outer",)), *inner], [*before, *chain(("outer",)), *inner])
    assert [row.golden for row in found.rows] == ["aten.add.Tensor", "aten.mul.Tensor"]


def test_a_graph_whose_kernels_are_not_seen_computes_itself() -> None:
    def launched(name: str, parent: int = -1) -> Kernel:
        return Kernel(name, "", "s", 0, parent, (), {}, (), {0: Value("float32", (2,), (1,), bytes)})

    graph, fused = launched("inductor.graph"), launched("triton.fused", parent=0)
    product = kernel("mm", parent=0)
    assert computing([graph, product]) == [graph]
    assert computing([graph, product, fused]) == [product, fused]
    assert [len(one) for one in (inputs([graph, product]), inputs([graph, product, fused]))] == [1, 2]


def test_of_kernels_that_call_others_the_inner_ones_compute() -> None:
    assert [k.name for k in computing([kernel("outer"), kernel("inner", parent=0), kernel("last")])] == [
        "aten.inner.default", "aten.last.default",
    ]  # fmt: skip
