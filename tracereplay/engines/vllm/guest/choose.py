"""Selects the adapter for a runner."""

from __future__ import annotations

from typing import Any

from tracereplay.engines.vllm.guest.adapter import Adapter, Recorder
from tracereplay.engines.vllm.guest.v0 import V0Adapter, refuse_v0
from tracereplay.engines.vllm.guest.v1 import V1Adapter, refuse_v1
from tracereplay.engines.vllm.guest.v2 import ROOM, V2Adapter, refuse_v2
from tracereplay.errors import Unsupported

__all__ = ["adapt", "generation", "is_v2"]

# Modules that define the model runners of a generation; subclasses defined elsewhere count by their bases.
_ROOMS = {"V1": "vllm.v1.worker.", "V0": "vllm.worker."}


def generation(runner: Any) -> str:
    """``V0`` or ``V1``, by the module that defines the runner's class or one of its bases.

    Raises:
        Unsupported: neither.
    """
    modules = [base.__module__ for base in type(runner).__mro__]
    for name, room in _ROOMS.items():
        if any(f"{module}.".startswith(room) for module in modules):
            return name
    kind = f"{type(runner).__module__}.{type(runner).__qualname__}"
    raise Unsupported(
        f"This engine's model runner is {kind}; those of vLLM's V0 (0.8.5) and V1 engines can be recorded. Start "
        "the engine without the plugin or the setting that replaces it."
    )


def is_v2(runner: Any) -> bool:
    """Whether it is Model Runner V2 of the V1 engine."""
    return any(f"{base.__module__}.".startswith(ROOM) for base in type(runner).__mro__)


def adapt(runner: Any, recorder: Recorder, config: Any) -> Adapter:
    """The adapter of ``runner``, attached.

    Raises:
        Unsupported: it runs in a way that cannot be recorded; nothing was attached.
    """
    if is_v2(runner):
        refuse_v2(runner, config)
        return V2Adapter(runner, recorder, config)
    if generation(runner) == "V1":
        refuse_v1(runner, config)
        return V1Adapter(runner, recorder, config)
    refuse_v0(runner, config)
    return V0Adapter(runner, recorder, config)
