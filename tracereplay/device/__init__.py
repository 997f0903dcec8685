"""Devices: the few operations that recording and feeding need from one."""

import torch

from tracereplay.device.cpu import Cpu
from tracereplay.device.seam import DONE, Device, Mark

__all__ = ["DONE", "Cpu", "Device", "Mark", "device_of"]


def device_of(device: torch.device) -> Device:
    """The `seam.Device` of a PyTorch device."""
    if device.type == "cuda":
        from tracereplay.device.cuda import Cuda

        return Cuda(device)
    return Cpu()
