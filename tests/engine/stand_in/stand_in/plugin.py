"""Switches on what the CPU platform switches off.

STAND_IN_ASYNC=1          asynchronous scheduling
STAND_IN_GRAPHS=MODE      CUDA graphs of vLLM's mode of that name, captured by `stand_in.graphs`: PIECEWISE,
                          FULL_DECODE_ONLY, FULL_AND_PIECEWISE; Model Runner V2 only. Pieces are those of breakable
                          graphs (VLLM_USE_BREAKABLE_CUDAGRAPH=1) or, with STAND_IN_PIECES=compiled, of vLLM's
                          compiler, which leaves each as it is. Of the sizes that compilation_config has; none, if
                          its cudagraph_mode says so
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
        asked = config.compilation_config
        sizes, none = asked.cudagraph_capture_sizes, asked.cudagraph_mode.name == "NONE"
        check(cls, config)
        if asynchronous:
            config.scheduler_config.async_scheduling = True
        if mode and not none:
            _configure_graphs(config.compilation_config, mode, sizes)

    platform.check_and_update_config = classmethod(check_and_update_config)


def _configure_graphs(compilation, mode, sizes):
    from vllm.config import CompilationMode, CUDAGraphMode

    compilation.cudagraph_mode = CUDAGraphMode[mode]
    compilation.cudagraph_capture_sizes = sizes
    compilation.max_cudagraph_capture_size = max(sizes)
    if os.environ.get("STAND_IN_PIECES") == "compiled":
        compilation.mode = CompilationMode.VLLM_COMPILE
        compilation.backend = "eager"  # Inductor's passes name operators that a CPU build lacks


def _be_late(seed):
    """The recorder's device is one whose copies are late; the engine does not know of it."""
    from late_device import LateDevice

    import tracereplay.device

    late = LateDevice(seed)
    tracereplay.device.device_of = lambda device: late
