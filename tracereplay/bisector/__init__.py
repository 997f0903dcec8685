"""Which operators, which settings or which version cause a divergence, proved by experiment (CAUSES.md)."""
