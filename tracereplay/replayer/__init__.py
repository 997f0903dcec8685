"""Golden values inside a candidate engine: fed to its operators, forced on its sampler."""
