"""Schemas of dispatched operators, read as text: what a kernel's arguments are called, and which stand for more
than themselves.

Why not PyTorch's parser: the analyst's side has no torch, and older torch prints alias sets that newer torch
does not read (``Tensor($0! -> ) out``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["SchemaArgument", "outside_of_tensors", "schema_arguments"]

MAX_SCHEMA = 20_000  # characters; the longest known has 2,500
_PAIRS = {"(": ")", "[": "]"}
_ALIAS = re.compile(r"\([^()]*\)")
_NAMED = re.compile(r"(?P<type>.+?)\s+(?P<name>\w+)\s*(?P<default>=.*)?", re.DOTALL)

# Words in an argument's name that stand for memory, or for things of the system or of the process.
_OUTSIDE = re.compile(
    r"(^|_)(ptrs?|pointers?|handlers?|handles?|address(es)?|addr|ipc|file|filename|files|path|paths|fd|stream|"
    r"group_name|process_group|comm|communicator|module|callable)(_|$)"
)
_OUTSIDE_TYPES = frozenset({"Storage", "Stream", "PyObject", "Any", "AnyEnumType", "QScheme"})


@dataclass(frozen=True, slots=True)
class SchemaArgument:
    """One argument of an operator.

    Args:
        name: of it.
        type: without alias annotations: ``Tensor``, ``Tensor?``, ``SymInt[]``.
        keyword_only: whether it must be given by name.
        default: whether it may be left out.
    """

    name: str
    type: str
    keyword_only: bool = False
    default: bool = False


def schema_arguments(schema: str) -> tuple[SchemaArgument, ...]:
    """The arguments of a schema such as ``aten::mm(Tensor self, Tensor mat2) -> Tensor``.

    Raises:
        ValueError: it is none.
    """
    if len(schema) > MAX_SCHEMA:
        raise ValueError(f"a schema of {len(schema)} characters")
    found, keyword_only = [], False
    for part in _parts(schema):
        if part == "*":
            keyword_only = True
            continue
        match = _NAMED.fullmatch(_ALIAS.sub("", part))
        if match is None:
            raise ValueError(f"an argument {part[:60]!r} without a name")
        kind = match["type"].replace(" ", "")
        found.append(SchemaArgument(match["name"], kind, keyword_only, match["default"] is not None))
    return tuple(found)


def outside_of_tensors(schema: str) -> str | None:
    """Why an operator may reach for something outside of its tensors, as a clause; None if nothing says so.

    It is judged by the types and names of its arguments: a number called ``handle`` is the address of something.
    """
    try:
        arguments = schema_arguments(schema)
    except ValueError as error:
        return f"its schema has {error}"
    for argument in arguments:
        if _OUTSIDE.search(argument.name.lower()):
            return f"its argument {argument.name!r} stands for something outside of its tensors"
        if argument.type.rstrip("?[]0123456789") in _OUTSIDE_TYPES or argument.type.startswith("__torch__"):
            return f"its argument {argument.name!r} is a {argument.type}, which may stand for anything"
    return None


def _parts(schema: str) -> list[str]:
    """The texts between commas in the first parentheses; what is within brackets and quotes is kept whole."""
    begin = schema.find("(")
    if begin < 0:
        raise ValueError("no arguments")
    parts, open_, quote, last, escaped = [], [")"], "", begin + 1, False
    for i in range(begin + 1, len(schema)):
        letter = schema[i]
        if escaped or letter == "\\":
            escaped = not escaped
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in _PAIRS:
            open_.append(_PAIRS[letter])
        elif letter == open_[-1]:
            open_.pop()
            if not open_:
                parts.append(schema[last:i].strip())
                return [part for part in parts if part]
        elif letter == "," and len(open_) == 1:
            parts.append(schema[last:i].strip())
            last = i + 1
    raise ValueError("no end of its arguments")
