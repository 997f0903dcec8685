"""The CPU: nothing is asynchronous."""

from __future__ import annotations

import torch

from tracereplay.device.seam import DONE, Mark

__all__ = ["Cpu"]


class Cpu:
    """See `seam.Device`."""

    asynchronous = False

    def area(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def lock(self, address: int, size: int) -> str | None:
        return None

    def unlock(self, address: int) -> None:
        pass

    def copy_out(self, staged: torch.Tensor, host: torch.Tensor) -> Mark:
        host.copy_(staged)
        return DONE

    def hold(self, mark: Mark) -> None:
        pass

    def upload(self, host: torch.Tensor) -> torch.Tensor:
        return host

    def fill(self, area: torch.Tensor, host: torch.Tensor) -> None:
        area.copy_(host)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)
