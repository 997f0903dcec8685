"""What was launched past PyTorch's dispatcher: a kernel's name and declaration, and its arguments by name.

How launches are seen is in `triton`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

__all__ = ["COMPUTED", "GRAPH", "Addresses", "Launch", "Word", "given", "launch_of"]

GRAPH = "inductor.graph"


class Launch(NamedTuple):
    """One launch of a Triton kernel, or call of a compiled graph.

    Args:
        name: `GRAPH`, or ``triton.`` and the function's name, as ``triton._temperature_kernel``. Without its
            module, which versions of an engine move, so that the two sides' kernels can be paired.
        declaration: its module, name and parameters: ``ops.scale(x_ptr, n, BLOCK: constexpr)``; empty of a graph,
            whose parameters have numbers.
        arguments: by the names of its parameters, in their order, defaults included; then options of the launch
            (``num_warps``) and its ``grid``, a tuple of numbers of programs. Tensors, numbers, strings, None,
            lists of them, `Word` and `Addresses`.
        unfollowed: parameters that were given addresses of memory, of which nothing more is known.
    """

    name: str
    declaration: str
    arguments: Mapping[str, Any]
    unfollowed: tuple[str, ...] = ()


class Word(NamedTuple):
    """An argument that is neither a tensor nor plain data: ``dtype`` and ``bf16``, ``function`` and ``silu``."""

    kind: str
    text: str = ""


class Addresses:
    """A tensor whose elements are addresses of memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


_NO_DEFAULT = inspect.Parameter.empty
COMPUTED = "computed"  # a grid of which no more is known
_NOT_ARGUMENTS = frozenset({"grid", "warmup", "stream", "benchmark_run"})
_POINTER = re.compile(r"(^|_)(ptrs?|pointers?|addr|address(es)?)\d*(_|$)")
_POINTERS = re.compile(r"(^|_)(ptrs|pointers|addresses)\d*(_|$)")
_INTEGERS = frozenset(getattr(torch, name) for name in ("int64", "uint64") if hasattr(torch, name))


class _Declared(NamedTuple):
    """A kernel's function: its parameters with their defaults, and which are compile-time constants."""

    text: str
    defaults: Mapping[str, Any]
    constants: frozenset[str]


def _declared(function: Any) -> _Declared:
    if inspect.isfunction(function):
        return _declared_in_code(function)
    constants = frozenset(p.name for p in function.params if p.is_constexpr)
    names = function.arg_names
    return _Declared(_listed(function, names, constants), dict.fromkeys(names, _NO_DEFAULT), constants)


@functools.lru_cache(maxsize=4096)
def _declared_in_code(function: Any) -> _Declared:
    parameters = inspect.signature(function).parameters
    constants = frozenset(p.name for p in parameters.values() if "constexpr" in _annotation(p))
    return _Declared(
        _listed(function, parameters, constants), {p.name: p.default for p in parameters.values()}, constants
    )


def _listed(function: Any, names: Iterable[str], constants: frozenset[str]) -> str:
    """The declaration, as text."""
    listed = ", ".join(f"{name}: constexpr" if name in constants else name for name in names)
    return f"{function.__module__}.{function.__qualname__}({listed})"


def _annotation(parameter: inspect.Parameter) -> str:
    """As text: Triton takes the class, and its name in quotes."""
    found = parameter.annotation
    return found if isinstance(found, str) else getattr(found, "__name__", str(found))


def launch_of(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], grid: Any) -> Launch:
    """What a call of a kernel's function launches, with its arguments as they are given; see `triton`."""
    declared = _declared(function)
    names = list(declared.defaults)
    if len(args) == len(names) - len(declared.constants) and not declared.constants & kwargs.keys():
        # Launched past what would fill in the constants: they are in the code.
        names = [name for name in names if name not in declared.constants]
    names += [str(place) for place in range(len(names), len(args))]
    passed = dict(zip(names, args, strict=False))
    passed |= {name: value for name, value in kwargs.items() if name not in _NOT_ARGUMENTS}
    known = {name: passed.pop(name, default) for name, default in declared.defaults.items()}
    known = {name: value for name, value in known.items() if value is not _NO_DEFAULT}
    everything = {**known, **passed}
    found = {name: given(name, value, name in declared.constants) for name, value in everything.items()}
    found["grid"] = _sizes(grid, everything)
    unfollowed = tuple(name for name, value in found.items() if _is_address(value))
    return Launch(f"triton.{function.__name__}", declared.text, found, unfollowed)


def _sizes(grid: Any, arguments: Mapping[str, Any]) -> Any:
    """The grid's sizes; a grid that is computed is asked with the launch's arguments by name."""
    try:
        found = grid(dict(arguments)) if callable(grid) else grid
        return found if isinstance(found, str) else tuple(map(int, found))
    except Exception:
        return COMPUTED


def given(name: str, value: Any, constant: bool) -> Any:
    """An argument as tensors, plain data and words."""
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        pointers = _POINTERS if value.dtype is torch.int64 else _POINTER
        return Addresses(value) if value.dtype in _INTEGERS and pointers.search(name) else value
    if kind == "constexpr":
        return given(name, value.value, True)
    if isinstance(value, bool | str | float | None):
        return value
    if isinstance(value, int):
        return Word("address") if value and not constant and _POINTER.search(name) else int(value)
    if kind == "TensorWrapper":  # a tensor that is read as another dtype
        return value.base
    if kind == "TensorDescriptor":
        return [value.base, *(list(map(int, part)) for part in (value.shape, value.strides, value.block_shape))]
    if isinstance(value, list | tuple):
        return [given(name, item, constant) for item in value]
    if hasattr(value, "data_ptr"):
        return Word("address")
    if isinstance(value, torch.dtype) or _is_tritons_dtype(value):
        return Word("dtype", str(value).removeprefix("torch."))
    if callable(value):
        return Word("function", str(getattr(value, "__name__", kind)))
    return Word(kind)


def _is_tritons_dtype(value: Any) -> bool:
    return type(value).__name__ == "dtype" and type(value).__module__.startswith("triton.")


def _is_address(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_address, value))
    return isinstance(value, Addresses) or (isinstance(value, Word) and value.kind == "address")
