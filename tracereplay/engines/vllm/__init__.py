"""vLLM V0 (0.8.5) and V1: how its environment is inspected and started, and what runs in its processes."""
