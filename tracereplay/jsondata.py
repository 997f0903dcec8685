"""Frozen values to and from JSON-compatible data: shared by all parts of a verdict.

Numbers that JSON has no word for are the strings ``nan``, ``inf`` and ``-inf``; Python's ``float`` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

__all__ = ["one_of", "optional", "plain", "real"]

T = TypeVar("T")


def plain(value: Any) -> Any:
    """Maps, lists, tuples and numbers as JSON can hold them; anything else as it is."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def real(value: float | str | None) -> float | None:
    """The number written by `plain`, if any."""
    return None if value is None else float(value)


def optional(read: Callable[[Any], T], value: Any) -> T | None:
    """``read(value)``, or None where there is none."""
    return None if value is None else read(value)


def one_of(value: Any, known: Container[Any], what: str) -> Any:
    """``value`` if it is known.

    Raises:
        ValueError: it is not.
    """
    if value not in known:
        raise ValueError(f"the {what} {value!r}")
    return value
