"""Where the model computes: the few things that recording and feeding ask of a device."""

import torch

from tracereplay.device.cpu import Cpu
from tracereplay.device.seam import DONE, Device, Mark

__all__ = ["DONE", "Cpu", "Device", "Mark", "device_of"]


def device_of(device: torch.device) -> Device:
    """What stands for a device of PyTorch's."""
    if device.type == "cuda":
        from tracereplay.device.cuda import Cuda

        return Cuda(device)
    return Cpu()
