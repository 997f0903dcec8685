"""Replaying recorded calls alone, in the candidate's environment, without a model or an engine."""
