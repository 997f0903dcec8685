"""Observe operators as they run, and feed them recorded inputs. Runs in the engine's process."""
