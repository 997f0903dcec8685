"""Which of the calls that PyTorch dispatches compute, and which move values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from tracereplay.hooks.kernels import declared_writes

__all__ = ["computes", "tensors", "written_by"]

# What moves values and computes none. A cast that changes the dtype is no such move.
_MOVES = frozenset(
    {
        "_to_copy", "alias", "arange", "cat", "clone", "constant_pad_nd", "contiguous", "copy_", "detach",
        "dropout", "empty", "empty_like", "empty_strided", "expand_copy", "fill_", "flip", "full", "full_like",
        "gather", "index", "index_copy_", "index_put", "index_put_", "index_select", "is_pinned", "lift_fresh",
        "masked_fill", "masked_fill_", "masked_select", "new_empty", "new_empty_strided", "new_full", "new_ones",
        "new_zeros", "ones", "ones_like", "pad", "permute_copy", "repeat", "repeat_interleave", "resize_", "roll",
        "scatter", "scatter_", "select_scatter", "set_", "slice_scatter", "sort", "split_with_sizes_copy",
        "squeeze_copy", "stack", "topk", "tril", "triu", "unsqueeze_copy", "view_copy", "where", "zero_", "zeros",
        "zeros_like",
    }
)  # fmt: skip


def computes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> bool:
    """Whether ``func`` made floating-point values that are not those which it was given."""
    if func.is_view:
        return False
    made = [x for x in tensors(_listed(result)) if x.is_floating_point()]
    namespace, _, name = func.name().partition("::")
    name = name.partition(".")[0]
    if namespace == "aten" and name in _MOVES:
        given = {x.dtype for x in tensors(args) if x.is_floating_point()}
        return name == "_to_copy" and any(x.dtype not in given for x in made)
    if made:
        return True
    return any(x.is_floating_point() for x in written_by(func, args, kwargs) or ())


def written_by(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor] | None:
    """The tensors that a call writes to by its schema; None: a higher-order operator has none."""
    if not hasattr(func, "_schema"):
        return None
    places, names = declared_writes(func)
    return list(tensors([args[i] for i in places if i < len(args)] + [kwargs[n] for n in names & kwargs.keys()]))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """All tensors among ``values``, also in lists and tuples."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors(value)
