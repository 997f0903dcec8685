"""Validated access to the values of a recorded configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tracereplay.alone.child.service import NotReplayable

__all__ = ["LARGEST_SIZE", "Fields"]

LARGEST_SIZE = 1 << 22  # of any one dimension: vocabularies have 2**18, the widest layers 2**17


class Fields:
    """An operator's recorded configuration. The trace may be a stranger's, so every value is validated.

    Args:
        operator: class name, for messages.
        values: the site's ``config``.
    """

    def __init__(self, operator: str, values: Mapping[str, Any]) -> None:
        self._operator = operator
        self._values = values

    def has(self, name: str) -> bool:
        """Whether there is such a value."""
        return name in self._values

    def size(self, name: str, default: int | None = None, *, most: int = LARGEST_SIZE) -> int:
        """A whole number from 1 to ``most``.

        Raises:
            NotReplayable: it is something else, or is missing and has no default (the same for other methods).
        """
        value = self._value(name, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self._wrong(name, f"a whole number from 1 to {most}")
        return value

    def number(self, name: str, default: float | None = None, *, least: float, most: float) -> float:
        """A finite float or int, not a bool."""
        value = self._value(name, default)
        if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
            raise self._wrong(name, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or False."""
        value = self._value(name, default)
        if type(value) is not bool:
            raise self._wrong(name, "true or false")
        return value

    def flag_or_number(self, name: str) -> bool:
        """Whether a value exists and is neither False nor zero."""
        return self._values.get(name) not in (False, None, 0)

    def choice(self, name: str, among: Sequence[str], default: str | None = None) -> str:
        """One of several strings."""
        value = self._value(name, default)
        if type(value) is not str or value not in among:
            raise self._wrong(name, f"one of {list(among)}")
        return value

    def _value(self, name: str, default: Any) -> Any:
        value = self._values.get(name, default)
        if value is None:
            raise NotReplayable(f"the recording does not state the {name} of this {self._operator}")
        return value

    def _wrong(self, name: str, expected: str) -> NotReplayable:
        found = str(self._values.get(name))[:40]
        return NotReplayable(f"the {name} of this {self._operator} is {found}; {expected} was expected")
