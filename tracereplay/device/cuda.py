"""An NVIDIA GPU: one side stream for copies, page-locked memory, events."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from tracereplay.device.seam import Mark

__all__ = ["Cuda"]

_ALREADY_REGISTERED = 712


class _Event:
    """See `seam.Mark`."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def reached(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()


class Cuda:
    """See `seam.Device`.

    Args:
        device: the GPU.
    """

    asynchronous = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)

    def area(self, size: int) -> torch.Tensor:
        found = torch.empty(size, dtype=torch.uint8, device=self._device)
        found.record_stream(self._side)  # copies from it may still run when it is dropped
        return found

    def lock(self, address: int, size: int) -> str | None:
        code = int(torch.cuda.cudart().cudaHostRegister(address, size, 0))
        if code == _ALREADY_REGISTERED:
            # Whatever had been registered there is gone, or it could not have been mapped anew.
            _forget_error()
            self.unlock(address)
            code = int(torch.cuda.cudart().cudaHostRegister(address, size, 0))
        if code == 0:
            return None
        _forget_error()
        return f"{size} bytes of host memory could not be page-locked (CUDA error {code})"

    def unlock(self, address: int) -> None:
        if int(torch.cuda.cudart().cudaHostUnregister(address)) != 0:
            _forget_error()

    def copy_out(self, staged: torch.Tensor, host: torch.Tensor) -> Mark:
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        event = torch.cuda.Event()
        with torch.cuda.stream(self._side):
            host.copy_(staged, non_blocking=True)
            event.record(self._side)
        return _Event(event)

    def hold(self, mark: Mark) -> None:
        if isinstance(mark, _Event):
            torch.cuda.current_stream(self._device).wait_event(mark.event)

    def upload(self, host: torch.Tensor) -> torch.Tensor:
        ready = host if host.is_pinned() else host.pin_memory()
        return ready.to(self._device, non_blocking=True)

    def fill(self, area: torch.Tensor, host: torch.Tensor) -> None:
        area.copy_(host, non_blocking=True)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)


def _forget_error() -> None:
    """Takes back the runtime's last error: PyTorch's next launch check, in the model, would raise it.

    PyTorch has no call for that; the runtime is the one that it has loaded.
    """
    runtime = _runtime()
    if runtime is not None:
        runtime.cudaGetLastError()


_found: list[Any] = []


def _runtime() -> Any:
    if not _found:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split(None, 5)[5].strip() for line in maps if "libcudart" in line}
        _found.append(ctypes.CDLL(min(paths)) if paths else None)
    return _found[0]
