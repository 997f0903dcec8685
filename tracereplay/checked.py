"""Plain data from another process, checked before it is used: which keys it may have, and what each takes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from tracereplay.errors import UsageError

__all__ = [
    "COUNT",
    "FLAG",
    "NUMBER",
    "OBJECT",
    "STRING",
    "Check",
    "among",
    "checked",
    "list_of",
    "or_none",
    "similar",
]

Check: TypeAlias = tuple[Callable[[Any], bool], str]  # whether a value is taken, and what would be, in words

STRING: Check = (lambda value: isinstance(value, str), "a string")
FLAG: Check = (lambda value: type(value) is bool, "true or false")
COUNT: Check = (lambda value: type(value) is int and value >= 0, "a non-negative integer")
NUMBER: Check = (lambda value: type(value) in (int, float) and value >= 0, "a number, 0 or more")
OBJECT: Check = (lambda value: isinstance(value, Mapping), "an object")


def among(*values: Any) -> Check:
    """Takes one of ``values``, and nothing that is merely equal to it: 1 is not True."""

    def fits(value: Any) -> bool:
        return any(type(value) is type(known) and value == known for known in values)

    return fits, f"one of {', '.join(map(str, values))}"


def or_none(check: Check) -> Check:
    """Takes None too."""
    fits, words = check
    return lambda value: value is None or fits(value), f"{words}, or None"


def list_of(fits: Callable[[Any], bool], words: str) -> Check:
    """Takes lists of what fits, of which ``words`` is the plural."""
    return lambda value: isinstance(value, list) and all(map(fits, value)), f"a list of {words}"


def checked(data: Any, takes: Mapping[str, Check], what: str, *, whole: bool = True) -> dict[str, Any]:
    """``data``, if it is an object whose keys are known and whose values fit.

    Args:
        data: as JSON gave it.
        takes: what the value of each key must be.
        what: what ``data`` is, for the message: ``the pass request``.
        whole: whether every key must be there.

    Raises:
        UsageError: it is not; the message names the key.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{data!r:.60} was given as {what}; an object was expected.")
    for name, value in data.items():
        if name not in takes:
            raise UsageError(f"The key {name!r} of {what} is unknown{similar(name, takes)}")
        fits, words = takes[name]
        if not fits(value):
            raise UsageError(f"The key {name!r} of {what} is {value!r:.60}; it must be {words}.")
    missing = [name for name in takes if whole and name not in data]
    if missing:
        raise UsageError(f"The key {missing[0]!r} of {what} is missing.")
    return dict(data)


def similar(name: str, known: Collection[str]) -> str:
    """The end of a sentence that refuses a name: those that are spelled alike, if there are any."""
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else "."
