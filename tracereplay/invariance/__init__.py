"""Checks that an engine computes the same bits for the same row, however its requests are served."""

from tracereplay.invariance.check import check_invariance
from tracereplay.invariance.plan import BY_DEFAULT, NAMES
from tracereplay.invariance.workload import default_prompts

__all__ = ["BY_DEFAULT", "NAMES", "check_invariance", "default_prompts"]
