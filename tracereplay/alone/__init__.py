"""Replaying recorded calls in isolation, in the candidate's environment, without a model or an engine."""
