"""What a pass gives operators in place of the values that arrive; `replayer` has the kinds of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tracereplay.event import RowMap

__all__ = ["Known", "Replacement"]

Known = npt.NDArray[np.bool_]


class Replacement(Protocol):
    """Replaces values by recorded ones."""

    feeds: bool  # whether it shall give every call what the recorded one was given

    def rows_for(self, rows_of: Callable[[int], tuple[RowMap, RowMap]]) -> None:
        """A step's rows are known: what it will be given may be read, and sent to the device, ahead.

        Called once a step, before anything else is asked for it, whether its operators run in graphs or not.

        Args:
            rows_of: rows of the inputs and of the outputs of a slot's calls.
        """

    def takes(self, slot: int) -> bool:
        """Whether it may replace any of a site's values: where nothing is kept either, a call passes untouched."""

    def rows(
        self, slot: int, side: str, index: int, rows: RowMap, like: torch.Tensor, inputs: int | None = None
    ) -> torch.Tensor | None:
        """``like`` with the recorded value of each known row (as a new tensor), None if no row is known.

        Args:
            inputs: number of tensors that the call is given; None if it is not known.
        """

    def lay_in(
        self, slot: int, side: str, index: int, rows: RowMap, hosts: Sequence[torch.Tensor], inputs: int | None
    ) -> Known | None:
        """Writes the recorded value of each known row to host memory, and says which are known; None: no row is.

        Args:
            hosts: the value's places, of its shape (padding rows included) and dtype: for what is given in its
                stead, or, to cancel an error, for golden's value and the injected pass's.
            inputs: as in `rows`.
        """

    def stands_for(self, slot: int, index: int, inputs: int | None) -> Sequence[int]:
        """The recorded operator's inputs that a fed input ``index`` stands for."""
