"""What recording in a user's own Python needs of vLLM in this process: see `engines.family.Own`.

Nothing here imports vLLM or torch: the user may not have done so yet.
"""

from __future__ import annotations

import gc
import sys
from importlib.metadata import entry_points

from tracereplay.engines.vllm.guest.front import front
from tracereplay.engines.vllm.guest.plugin import register

__all__ = ["begin", "end", "is_built", "is_declared"]

# Classes whose objects are engines, of V0 and V1; some of these names are the same class.
_ENGINES = (
    ("vllm.v1.engine.llm_engine", "LLMEngine"), ("vllm.v1.engine.async_llm", "AsyncLLM"),
    ("vllm.v1.engine.core", "EngineCore"), ("vllm.engine.llm_engine", "LLMEngine"),
    ("vllm.engine.async_llm_engine", "AsyncLLMEngine"),
)  # fmt: skip


def is_built() -> bool:
    """Whether there is an engine already, which has no taps."""
    kinds = {getattr(sys.modules.get(module), name, None) for module, name in _ENGINES} - {None}
    if not kinds:
        return False
    frozen = gc.get_freeze_count()
    gc.unfreeze()  # vLLM freezes what there is when an engine has started, and what is frozen is not listed
    try:
        gc.collect()  # one that was let go of may wait for this
        return any(not kinds.isdisjoint(type(one).__mro__) for one in gc.get_objects())
    finally:
        if frozen:
            gc.freeze()


def is_declared() -> bool:
    """Whether processes that vLLM starts find the plugin by themselves."""
    return any(point.name == "tracereplay" for point in entry_points(group="vllm.general_plugins"))


def begin() -> None:
    """Engines that are built from now on, here or in processes below, are recorded as the environment says."""
    front.cache_clear()
    register()


def end() -> None:
    """Nobody is recorded any more; the environment is as it was before."""
    front().close()
    front.cache_clear()
