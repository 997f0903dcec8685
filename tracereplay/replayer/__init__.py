"""Golden values in the candidate engine's process: fed to its operators, forced on its sampler."""
