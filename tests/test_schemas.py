"""Schemas are read as PyTorch reads them, and what stands for more than itself is noticed."""

from __future__ import annotations

import pytest

from tracereplay.schemas import SchemaArgument, outside_of_tensors, schema_arguments


def test_every_kind_of_argument_is_read() -> None:
    schema = (
        "x::y.z(Tensor(a!) self, Tensor($0! -> )? key, Tensor(a -> *) t, SymInt[2] size=[1, 1], *, float p=0., "
        'str how="a, \\"b\\")", Tensor?[] many, Generator? generator=None) -> (Tensor(a!), Tensor)'
    )
    assert schema_arguments(schema) == (
        SchemaArgument("self", "Tensor"),
        SchemaArgument("key", "Tensor?"),
        SchemaArgument("t", "Tensor"),
        SchemaArgument("size", "SymInt[2]", default=True),
        SchemaArgument("p", "float", keyword_only=True, default=True),
        SchemaArgument("how", "str", keyword_only=True, default=True),
        SchemaArgument("many", "Tensor?[]", keyword_only=True),
        SchemaArgument("generator", "Generator?", keyword_only=True, default=True),
    )
    assert schema_arguments("x::y() -> ()") == ()


@pytest.mark.parametrize(
    "schema", ["", "aten::mm", "aten::mm(Tensor self", "x::y(...) -> ...", "x::y(" + "a" * 30000]
)
def test_what_is_no_schema_is_refused(schema: str) -> None:
    with pytest.raises(ValueError, match=r"schema|arguments|name"):
        schema_arguments(schema)
    assert "its schema has" in str(outside_of_tensors(schema))


@pytest.mark.parametrize(
    ("argument", "is_outside"),
    [
        ("Tensor handler_tensor", True),
        ("int handle", True),
        ("int data_ptr", True),
        ("int[] ipc_ptrs", True),
        ("str filename", True),
        ("Storage source", True),
        ("PyObject layer_name", True),
        ("__torch__.torch.classes.quantized.LinearPackedParamsBase w", True),
        ("str group_name", True),
        ("int group", False),
        ("Tensor profile", False),
        ("int start", False),
        ("Tensor?[] indices", False),
    ],
)
def test_what_stands_for_something_outside(argument: str, is_outside: bool) -> None:
    assert (outside_of_tensors(f"x::y(Tensor a, {argument}, *, int b=1) -> Tensor") is not None) is is_outside
