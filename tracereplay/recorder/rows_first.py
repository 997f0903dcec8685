"""Tensors with a leading dimension of one before their rows, as every other tensor: rows first."""

from __future__ import annotations

from collections.abc import Collection

import torch

__all__ = ["RowsFirst"]


class RowsFirst:
    """Views of tensors whose first dimension is their rows.

    Models that are written for ``[batch, rows, hidden]`` may run with a batch of one. What is recorded, fed and
    compared is then ``[rows, hidden]``, as of every other model.

    Args:
        slots: of the sites whose tensors may have such a dimension.
    """

    def __init__(self, slots: Collection[int] = ()) -> None:
        self._slots = frozenset(slots)
        self._flat: set[tuple[int, str, int]] = set()  # taps whose tensors do not have it

    def all(self, slot: int, side: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors of one side of a call, in order of their indices."""
        if slot not in self._slots:
            return tensors
        return [self.one(slot, side, index, x) for index, x in enumerate(tensors)]

    def one(self, slot: int, side: str, index: int, x: torch.Tensor) -> torch.Tensor:
        """``x`` of shape ``[1, rows, ...]`` as ``[rows, ...]``, in the same memory; any other as it is.

        Of a step with one row, ``[1, 1, hidden]`` and ``[1, heads, width]`` look alike. A tap that was ever seen
        with several rows in front does not have the dimension; any other has it always.
        """
        if slot not in self._slots or x.dim() < (3 if x.is_floating_point() else 2):
            return x
        if x.shape[0] != 1:
            self._flat.add((slot, side, index))
        return x if (slot, side, index) in self._flat else x[0]
