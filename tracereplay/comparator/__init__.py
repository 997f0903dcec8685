"""Compares two traces: aligns their rows, measures how they differ, judges what that means."""

from tracereplay.comparator.judge import compare_traces
from tracereplay.comparator.tolerance import Policy, Rule, load_policy

__all__ = ["Policy", "Rule", "compare_traces", "load_policy"]
