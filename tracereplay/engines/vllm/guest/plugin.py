"""The ``vllm.general_plugins`` entry point; every process of the engine loads it, perhaps several times.

It does nothing unless `launch` has put ``TRACEREPLAY_GUEST`` into the environment.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from tracereplay.engines.variables import ENABLED
from tracereplay.engines.vllm.guest.ending import recorded_to
from tracereplay.engines.vllm.guest.identity import FRONTS, watch_front

__all__ = ["register"]

_ARGUMENTS = "vllm.engine.arg_utils"
# modules of V0 and V1 with the class that creates a worker (0.8.5 has the first, newer ones the second), and that
# with the engine's arguments
_MODULES = ("vllm.worker.worker_base", "vllm.v1.worker.worker_base", _ARGUMENTS, *FRONTS)


def register() -> None:
    """Makes workers created by this process or its forks controllable; idempotent."""
    if not os.environ.get(ENABLED):
        return
    if not any(isinstance(f, _OnImport) for f in sys.meta_path):
        sys.meta_path.insert(0, _OnImport())
    for name in _MODULES:
        if name in sys.modules:
            _patch(sys.modules[name])


class _OnImport(importlib.abc.MetaPathFinder):
    """Patches the worker modules as they are imported.

    Why not import them here: plugins are loaded while vLLM is partially imported, and a failed import is not
    retried.
    """

    def __init__(self) -> None:
        self._asking = False

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname not in _MODULES or self._asking:
            return None
        self._asking = True  # find_spec calls all finders, including this one
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _patch(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _patch(module: ModuleType) -> None:
    if module.__name__ == _ARGUMENTS:
        from tracereplay.engines.vllm.guest.given import watch_arguments

        watch_arguments(module)
        return
    if module.__name__ in FRONTS:
        if recorded_to() is not None:
            watch_front(module)
        return
    wrapper: Any = getattr(module, "WorkerWrapperBase", None)
    if wrapper is None or getattr(wrapper, "_tracereplay", False):
        return
    original = wrapper.init_worker

    def init_worker(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        _join(self.worker)
        return result

    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        _join(self.worker)
        return self.worker.load_model(*args, **kwargs)

    wrapper.init_worker = init_worker
    if not hasattr(wrapper, "load_model"):
        # A worker process of V1 loads plugins in init_worker, too late to wrap that. The wrapper forwards calls to
        # its worker, so the call that loads the model can be intercepted here.
        wrapper.load_model = load_model
    wrapper._tracereplay = True


def _join(worker: Any) -> None:
    if not os.environ.get(ENABLED):  # a recording in this process is over, and this engine was built afterwards
        return
    from tracereplay.engines.vllm.guest.worker import CONTROL, GuestWorker

    if not hasattr(worker, CONTROL):
        GuestWorker(worker)
