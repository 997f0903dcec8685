"""A verdict as JSON of schema 1, for machines; `Verdict.from_dict` reads it back."""

from __future__ import annotations

from tracereplay.verdict import Verdict

__all__ = ["render"]


def render(verdict: Verdict) -> str:
    """The verdict as one JSON object, indented, with a newline at its end."""
    return verdict.to_json()
