"""Run a part of tracereplay under an engine's interpreter, without changing the engine's environment."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracereplay.launch.process import Configured, EngineProcess, Launchable
else:
    from tracereplay.lazily import imported_on_use

    __getattr__ = imported_on_use(
        __name__, {"tracereplay.launch.process": ("Configured", "EngineProcess", "Launchable")}
    )

__all__ = ["Configured", "EngineProcess", "Launchable"]
