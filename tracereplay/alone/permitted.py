"""Which recorded kernels may be executed, and under which name.

A trace is a stranger's, and executing a recorded call is executing a stranger's choice of function. So only
kernels listed in kernels.toml are executed, and none whose schema takes pointers, handles or files, whatever its
name. The child checks the candidate's schema in the same way (`alone.child.kernels`).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from tracereplay.alone.shapes import Shapes
from tracereplay.dtypes import itemsize, nbytes
from tracereplay.event import Kernel, LeftOut, Named, Opaque, Value, flatten, is_triton
from tracereplay.schemas import outside_of_tensors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["MAX_BYTES", "UNKNOWN", "Changed", "changed", "refusal", "shapes_of"]

MAX_BYTES = 1 << 30  # of a call's arguments, of the memory that they span, and of what it asks for
UNKNOWN = "it is not among the kernels known to be safe"
KINDS = ("dtype", "device", "layout", "memory_format", "Generator")
# Of these a single number may say how large the result is.
_LENGTHS = frozenset("arange bincount linspace one_hot randperm repeat_interleave constant_pad_nd".split())  # noqa: SIM905
_SHAPE_RULES = ("multiples", "at_most", "only", "below")
_WIDEST = 8  # bytes of an element, mostly


@dataclass(frozen=True, slots=True)
class Changed:
    """How a kernel changed between versions.

    Args:
        now: its name.
        arguments: new names of its arguments, by the old ones.
        without: values with which an argument may be left out, where the candidate has none of its name.
    """

    now: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    without: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Rules:
    aten: frozenset[str]
    shaped: Mapping[str, Shapes]
    refused: Mapping[str, str]
    changed: Mapping[str, Changed]


@cache
def _rules() -> _Rules:
    data: Any = tomllib.loads((files(__package__) / "kernels.toml").read_text(encoding="utf-8"))
    allowed = data["allowed"]
    shaped = {
        f"{space}.{name}": Shapes(
            forms, **{rule: data[rule].get(space, {}).get(name, {}) for rule in _SHAPE_RULES}
        )
        for space, kernels in allowed.items()
        if space != "aten"
        for name, forms in kernels.items()
    }
    renamed = {
        c["kernel"]: Changed(c.get("now", c["kernel"]), c.get("arguments", {}), c.get("without", {}))
        for c in data["changed"]
    }
    return _Rules(frozenset(f"aten.{name}" for name in allowed["aten"].split()), shaped, data["refused"], renamed)


def changed(kernel: Kernel) -> Changed:
    """The name and arguments that it has in other versions."""
    base = _base(kernel.name)
    found = _rules().changed.get(base, Changed(base))
    return replace(found, now=kernel.name.replace(base, found.now, 1))


def shapes_of(kernel: Kernel) -> Shapes | None:
    """The shapes of a kernel that trusts its caller; None for one that checks its arguments itself."""
    return _rules().shaped.get(_base(kernel.name))


def refusal(kernel: Kernel) -> str | None:
    """Why ``kernel`` is not executed, as a clause that follows "because"; None if it may be.

    Reads the record only: names, schema, shapes. No tensor is loaded.
    """
    rules, base = _rules(), _base(kernel.name)
    if base in rules.refused:
        return rules.refused[base]
    if is_triton(kernel):
        return "it is written in Triton, and was launched without the dispatcher"
    if not kernel.schema:
        return "it was launched without the dispatcher"
    if kernel.failed:
        return f"it raised {kernel.failed} when it was recorded"
    if base.removesuffix("_") not in rules.aten and base not in rules.shaped:
        return outside_of_tensors(kernel.schema) or _arguments(kernel) or UNKNOWN
    if kernel.schema.split("(", 1)[0].replace("::", ".") not in (base, kernel.name):
        return "its schema is that of another kernel"
    return outside_of_tensors(kernel.schema) or _arguments(kernel) or _shapes(kernel, rules.shaped.get(base))


def _base(name: str) -> str:
    """``aten.mm`` of ``aten.mm.default``."""
    return ".".join(name.split(".")[:2])


def _shapes(kernel: Kernel, shapes: Shapes | None) -> str | None:
    return None if shapes is None else shapes.wrong(kernel.by_name())


def _arguments(kernel: Kernel) -> str | None:
    """What is wrong with the recorded arguments, if anything."""
    total = 0
    for argument in flatten(kernel.given):
        if isinstance(argument, LeftOut):
            return f"{argument.reason} was not recorded"
        if isinstance(argument, Opaque) and argument.kind not in KINDS:
            return f"an argument of type {argument.kind!r} cannot be recorded"
        if isinstance(argument, Value | Named):
            total += max(nbytes(argument.dtype, argument.shape), _span(argument))
    if total > MAX_BYTES:
        return f"its arguments have {total} bytes; the limit is {MAX_BYTES}"
    if _asked(kernel) > MAX_BYTES:
        return f"it asks for more than {MAX_BYTES} bytes"
    return None


def _span(tensor: Value | Named) -> int:
    """Bytes from the beginning of its memory to its last element."""
    if 0 in tensor.shape:
        return 0
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=False))
    return (tensor.start + last + 1) * itemsize(tensor.dtype)


def _asked(kernel: Kernel) -> int:
    """Bytes that its largest list of whole numbers would take as sizes, and its largest number as a length."""
    everything = kernel.given
    lists = [[n for n in a if type(n) is int] for a in everything if isinstance(a, tuple)]
    largest: float = max((math.prod(max(abs(n), 1) for n in numbers) for numbers in lists), default=0)
    if re.sub(r"_$", "", _base(kernel.name).split(".")[1]) in _LENGTHS:
        numbers = [n for a in everything for n in flatten([a]) if isinstance(n, int | float) and n == n]
        largest = max([largest, *map(abs, numbers)])
    return int(min(largest, MAX_BYTES)) * _WIDEST
