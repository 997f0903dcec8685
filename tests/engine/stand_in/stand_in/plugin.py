"""Switches on what the CPU platform switches off."""

import functools
import os


def register():
    """Asynchronous scheduling, if STAND_IN_ASYNC is set; idempotent."""
    if not os.environ.get("STAND_IN_ASYNC"):
        return
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config
    if getattr(original, "stand_in", False):
        return

    @functools.wraps(original.__func__)
    def check_and_update_config(cls, config):
        original.__func__(cls, config)
        config.scheduler_config.async_scheduling = True

    check_and_update_config.stand_in = True
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
