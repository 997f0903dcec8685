"""A recording inside an engine process. Must never disturb the engine."""
