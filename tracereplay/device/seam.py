"""The narrow interface between this project and an accelerator.

On a device that computes beside the host, a tensor is there only once its stream has come to it. Everything that
recording and feeding need to know of that is here, so that it can be tested without such a device: by a stand-in
whose copies run as late as they may.
"""

from __future__ import annotations

from typing import Protocol

import torch

__all__ = ["DONE", "Device", "Mark"]


class Mark(Protocol):
    """A point in the device's work."""

    def reached(self) -> bool:
        """Whether the work before it is done; does not wait."""

    def wait(self) -> None:
        """The host waits until it is."""


class _Done:
    def reached(self) -> bool:
        return True

    def wait(self) -> None:
        pass


DONE: Mark = _Done()


class Device(Protocol):
    """Where tensors are computed.

    Attributes:
        asynchronous: whether work runs beside the host, so that tensors are first copied to a staging area.
    """

    asynchronous: bool

    def area(self, size: int) -> torch.Tensor:
        """``size`` bytes of the device's own memory, uint8, aligned for any dtype; its address never changes."""

    def lock(self, address: int, size: int) -> str | None:
        """Lets the device copy to and from this host memory beside its computing.

        Returns:
            What went wrong; copies are right then, but wait.
        """

    def unlock(self, address: int) -> None:
        """Undoes ``lock``. No copy may be under way."""

    def copy_out(self, staged: torch.Tensor, host: torch.Tensor) -> Mark:
        """Copies to the host what ``staged`` holds once the work enqueued so far is done, beside what comes after.

        Args:
            staged: of an area.
            host: as many bytes of the host's memory.
        """

    def hold(self, mark: Mark) -> None:
        """What is enqueued from now on starts only behind ``mark``. The host does not wait."""

    def upload(self, host: torch.Tensor) -> torch.Tensor:
        """``host`` on the device, for work that is enqueued from now on. The host does not wait."""

    def fill(self, area: torch.Tensor, host: torch.Tensor) -> None:
        """Copies ``host`` to ``area`` before the work that is enqueued from now on. The host does not wait.

        Args:
            area: memory of the device's whose address stays.
            host: as many elements of the same dtype, `pinned`; may be dropped as soon as this returns.
        """

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Host memory to fill for `upload` or `fill`; may be dropped as soon as that returns."""
