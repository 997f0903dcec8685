"""Run a part of tracereplay under an engine's interpreter, without changing the engine's environment."""

from tracereplay.launch.process import Configured, EngineProcess, Launchable

__all__ = ["Configured", "EngineProcess", "Launchable"]
