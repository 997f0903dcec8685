"""Switches on what the CPU platform switches off.

STAND_IN_ASYNC=1          asynchronous scheduling
STAND_IN_GRAPHS=MODE      CUDA graphs of vLLM's mode of that name, captured by `stand_in.graphs`: PIECEWISE,
                          FULL_DECODE_ONLY, FULL_AND_PIECEWISE; Model Runner V2 only. Pieces are those of breakable
                          graphs (VLLM_USE_BREAKABLE_CUDAGRAPH=1) or, with STAND_IN_PIECES=compiled, of vLLM's
                          compiler, which leaves each as it is
STAND_IN_GRAPH_SIZES=1,2  of how many rows; 1, 2, 4 and 8 without
STAND_IN_LATE=SEED        tensors are copied to the host as late as allowed (`late_device`), as on a device that
                          computes by itself
"""

import functools
import os


def register():
    """Idempotent: every process of the engine's calls it, some of them twice."""
    asynchronous, mode = os.environ.get("STAND_IN_ASYNC"), os.environ.get("STAND_IN_GRAPHS")
    from vllm.platforms.cpu import CpuPlatform

    if getattr(CpuPlatform, "stand_in", False):
        return
    CpuPlatform.stand_in = True
    if asynchronous or mode:
        _configure(CpuPlatform, bool(asynchronous), mode)
    if mode:
        from stand_in import cuda

        cuda.install(CpuPlatform)
    if seed := os.environ.get("STAND_IN_LATE"):
        _be_late(int(seed))


def _configure(platform, asynchronous, mode):
    check = platform.check_and_update_config.__func__

    @functools.wraps(check)
    def check_and_update_config(cls, config):
        check(cls, config)
        if asynchronous:
            config.scheduler_config.async_scheduling = True
        if mode:
            _configure_graphs(config.compilation_config, mode)

    platform.check_and_update_config = classmethod(check_and_update_config)


def _configure_graphs(compilation, mode):
    from vllm.config import CompilationMode, CUDAGraphMode

    sizes = sorted(int(size) for size in os.environ.get("STAND_IN_GRAPH_SIZES", "1,2,4,8").split(","))
    compilation.cudagraph_mode = CUDAGraphMode[mode]
    compilation.cudagraph_capture_sizes = sizes
    compilation.max_cudagraph_capture_size = sizes[-1]
    if os.environ.get("STAND_IN_PIECES") == "compiled":
        compilation.mode = CompilationMode.VLLM_COMPILE
        compilation.backend = "eager"  # Inductor's passes name operators that a CPU build lacks


def _be_late(seed):
    """The recorder's device is one whose copies are late; the engine does not know of it."""
    from late_device import LateDevice

    import tracereplay.device

    late = LateDevice(seed)
    tracereplay.device.device_of = lambda device: late
