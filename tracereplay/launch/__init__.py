"""Run a part of tracereplay under an engine's interpreter, without changing the engine's environment."""

from tracereplay.launch.process import EngineProcess, Launchable

__all__ = ["EngineProcess", "Launchable"]
