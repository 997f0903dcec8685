"""One recording's life inside an engine process. Must never disturb the engine."""
