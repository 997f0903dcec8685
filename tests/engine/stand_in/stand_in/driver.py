"""The half of a Triton backend that knows the device: one, the processor."""

from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class Processor(DriverBase):
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"multiprocessor_count": 1, "max_shared_mem": 1 << 16, "warpSize": 1}
    )

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_current_target(self):
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_benchmarker(self):
        raise RuntimeError("The stand-in for a GPU measures nothing.")
