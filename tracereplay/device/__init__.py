"""Where the model computes: the few things that recording and feeding ask of a device."""

from tracereplay.device.cpu import Cpu
from tracereplay.device.seam import DONE, Device, Mark, device_of

__all__ = ["DONE", "Cpu", "Device", "Mark", "device_of"]
