"""A verdict as JSON of schema 1, for machines; `Verdict.from_dict` reads it back."""

from __future__ import annotations

import json

from tracereplay.verdict import Verdict

__all__ = ["render"]


def render(verdict: Verdict) -> str:
    """The verdict as one JSON object, indented, with a newline at its end."""
    return json.dumps(verdict.as_dict(), indent=2, allow_nan=False, default=str) + "\n"
