"""Which adapter fits a runner."""

from __future__ import annotations

from typing import Any

from tracereplay.engines.vllm.guest.adapter import Adapter, Recorder
from tracereplay.engines.vllm.guest.v0 import V0Adapter, refuse_v0
from tracereplay.engines.vllm.guest.v1 import V1Adapter, refuse_v1

__all__ = ["adapt", "generation"]


def generation(runner: Any) -> str:
    """``V0`` or ``V1``, by where the runner's class comes from (subclasses included)."""
    modules = [base.__module__ for base in type(runner).__mro__]
    return "V1" if any(m.startswith("vllm.v1.") for m in modules) else "V0"


def adapt(runner: Any, recorder: Recorder, config: Any) -> Adapter:
    """The adapter of ``runner``, attached.

    Raises:
        Unsupported: it runs in a way that cannot be recorded; nothing was attached.
    """
    if generation(runner) == "V1":
        refuse_v1(runner, config)
        return V1Adapter(runner, recorder, config)
    refuse_v0(runner, config)
    return V0Adapter(runner, recorder, config)
