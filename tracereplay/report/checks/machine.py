"""What came of checks as JSON: schema 1, each row with its whole verdict (`Verdict.from_dict` reads that)."""

from __future__ import annotations

import json

from tracereplay.checks import Results

__all__ = ["render"]


def render(results: Results) -> str:
    """One JSON object, indented, with a newline at its end."""
    return json.dumps(results.as_dict(), indent=2, allow_nan=False, default=str) + "\n"
