"""Words from elsewhere, made fit to be shown."""

from __future__ import annotations

__all__ = ["clean"]


def clean(value: object) -> str:
    """``value`` as text without control characters: names in a trace were written by others."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
