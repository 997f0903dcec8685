"""Compares two traces: aligns their rows, measures how they differ, judges what that means."""

from tracereplay.comparator.judging.outcome import compare_traces
from tracereplay.comparator.numbers.policy_file import load_policy
from tracereplay.comparator.numbers.tolerance import Policy, Rule

__all__ = ["Policy", "Rule", "compare_traces", "load_policy"]
