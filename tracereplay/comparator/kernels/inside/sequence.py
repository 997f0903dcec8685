"""Which kernels compute values, and which kernels of two sequences match."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from tracereplay.event import Kernel, LeftOut, Named, Value, flatten, is_triton

__all__ = ["align", "computing", "inputs", "pairs", "results"]

# Names of arguments that are only written: what is in them before means nothing.
_ONLY_WRITTEN = frozenset({"out", "output", "result", "c"})
_POINTER = re.compile(r"(_ptr)?\d*$")  # how Triton kernels call the same: output_ptr, out_ptr0

_GRAPH = "inductor.graph"
# Results that are memory nobody has written, or a look at memory that is there.
_NO_VALUE = frozenset({"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"})
_NO_WORK = frozenset({"detach", "alias", "lift_fresh"})
# A schema's result that shares memory with an argument, and is not written: a view.
_VIEW = re.compile(r"\) -> \(?Tensor\(\w+( -> \*)?\)")


def computing(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Those that compute values: no views, no allocations, and of one that calls others the others only.

    Of a graph that Inductor compiled the graph only, unless its kernels are Triton's: those in C++ are not seen.
    """
    working = _working(kernels)
    return [k for place, k in enumerate(kernels) if place in working and _computes(k)]


def _working(kernels: Sequence[Kernel]) -> set[int]:
    """Places of those that do the work of all."""
    launch = {kernel.parent for kernel in kernels if is_triton(kernel)}
    whole = {place for place, k in enumerate(kernels) if k.name == _GRAPH and place not in launch}
    parents = {kernel.parent for kernel in kernels if kernel.parent not in whole}
    return {place for place, k in enumerate(kernels) if place not in parents and k.parent not in whole}


def _computes(kernel: Kernel) -> bool:
    name = kernel.name.split(".")[1]
    if name in _NO_VALUE or name in _NO_WORK:
        return False
    return bool(kernel.written) or not _VIEW.search(kernel.schema)


def results(kernel: Kernel) -> dict[str, Value]:
    """A kernel's results, by name: tensors that it returns (``0``), else those that it writes (``residual``)."""
    returned = [value for value in flatten(kernel.outputs) if isinstance(value, Value)]
    if returned:  # one that works in place returns what it wrote
        return {str(i): value for i, value in enumerate(returned)}
    names = kernel.tensor_names()
    return {names[i] if i < len(names) else str(i): kernel.written[i] for i in sorted(kernel.written)}


def inputs(kernels: Sequence[Kernel]) -> list[dict[str, Value]]:
    """What each of `computing(kernels)` reads: its tensor arguments by name, as they were before.

    Without those that it only writes, which is known by their names, or by their memory: of what `aten.empty`
    allocated and nothing has written since, nothing can be read.
    """
    working = _working(kernels)
    unwritten: set[int] = set()
    found = []
    for place, kernel in enumerate(kernels):
        if place in working and _computes(kernel):
            found.append({name: v for name, v in _tensors(kernel).items() if _is_read(name, v, unwritten)})
        returned = {v.storage for v in flatten(kernel.outputs) if isinstance(v, Value)}
        if kernel.name.split(".")[1] in _NO_VALUE:
            unwritten |= returned
        elif place in working:
            unwritten -= {v.storage for v in kernel.written.values()}
            unwritten -= set() if _VIEW.search(kernel.schema) else returned
    return found


def _is_read(name: str, value: Value, unwritten: set[int]) -> bool:
    return _POINTER.sub("", name) not in _ONLY_WRITTEN and (value.storage < 0 or value.storage not in unwritten)


def _tensors(kernel: Kernel) -> dict[str, Value]:
    """Its recorded tensor arguments by name, before the call."""
    given = [a for a in flatten(kernel.by_name().values()) if isinstance(a, Value | Named | LeftOut)]
    return {name: a for name, a in zip(kernel.tensor_names(), given, strict=True) if isinstance(a, Value)}


def pairs(golden: Kernel, candidate: Kernel) -> list[tuple[Value, Value]]:
    """The results of two kernels of one name that are compared with each other.

    A result of a Triton kernel is a tensor that it changed. If it left it as it was on one side, that is the
    result there.
    """
    mine, theirs = results(golden), results(candidate)
    if not is_triton(golden):
        return list(zip(mine.values(), theirs.values(), strict=False))
    before, other = _tensors(golden), _tensors(candidate)
    names = [name for name in {**mine, **theirs} if name in before and name in other]
    return [(mine.get(name, before[name]), theirs.get(name, other[name])) for name in names]


def align(golden: Sequence[Kernel], candidate: Sequence[Kernel]) -> list[tuple[int | None, int | None]]:
    """Pairs of places, in order: kernels of one name that do the same, or one without a partner.

    The longest common subsequence, by the names of kernels; among equally long ones that in which most pairs give
    results of the same dtypes. Where sides differ, golden's stand before the candidate's.
    """
    rows, columns = len(golden), len(candidate)
    score = np.zeros((rows + 1, columns + 1), np.int64)
    worth = [[_worth(a, b, rows + columns) for b in candidate] for a in golden]
    for i in range(rows - 1, -1, -1):
        for j in range(columns - 1, -1, -1):
            paired = score[i + 1, j + 1] + worth[i][j] if worth[i][j] else -1
            score[i, j] = max(paired, score[i + 1, j], score[i, j + 1])
    pairs: list[tuple[int | None, int | None]] = []
    i = j = 0
    while i < rows and j < columns:
        if worth[i][j] and score[i, j] == score[i + 1, j + 1] + worth[i][j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif score[i, j] == score[i + 1, j]:
            pairs.append((i, None))
            i += 1
        else:
            pairs.append((None, j))
            j += 1
    return [*pairs, *((place, None) for place in range(i, rows)), *((None, place) for place in range(j, columns))]


def _worth(golden: Kernel, candidate: Kernel, most: int) -> int:
    """Zero where the two are not the same kernel; one pair more outweighs all dtypes."""
    if golden.name != candidate.name:
        return 0
    dtypes = [[value.dtype for value in results(kernel).values()] for kernel in (golden, candidate)]
    return most + 1 + (dtypes[0] == dtypes[1])
