"""A recording in the engine's process. Must never disturb the engine."""
