"""Which requests a recording keeps, and which of their rows: a server serves more than anybody wants to keep.

A request is chosen when an engine first schedules it, once and for all, by what every rank and every replica sees
alike: its id, and a mark that its client may have set. One that is not chosen gets no number, and none of its rows
are copied. Tokens, logprobs and the prompt of a chosen request are always kept, whatever is left out of its
operators: a replay must be able to force them.

Whoever asks for a recording imports this, as does whoever makes it; so it never imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

import xxhash

from tracereplay.checked import FLAG, Check, checked, list_of, or_none
from tracereplay.errors import UsageError

__all__ = ["MARK", "RECORD_IT", "SKIP_IT", "TRIGGER_IT", "Choice", "positions_of", "rate_of"]

MARK = "tracereplay"  # the key among a request's extra arguments
RECORD_IT, SKIP_IT = "record", "skip"  # what it may say to be chosen, or not to be
TRIGGER_IT = "trigger"  # to be chosen, and to set a flight recorder off

_HASHES = 1 << 64
_TERMS = 1 << 53  # of a rate: what JSON carries without loss


def _is_rate(value: Any) -> bool:
    whole = isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)
    return whole and bool(0 < value[0] <= value[1] <= _TERMS)


def _is_range(value: Any) -> bool:
    whole = isinstance(value, list) and len(value) == 2 and type(value[0]) is int and value[0] >= 0
    return whole and (value[1] is None or bool(type(value[1]) is int and value[0] < value[1]))


_TAKES: Mapping[str, Check] = {
    "sample": or_none((_is_rate, "two integers, the first at most the second and above 0")),
    "requests": list_of(lambda glob: isinstance(glob, str), "globs"),
    "marked": FLAG,
    "tokens": or_none((_is_range, "the first position, and the first that is left out again")),
    "every": (lambda value: type(value) is int and value > 0, "a positive integer"),
}


@dataclass(frozen=True)
class Choice:
    """What is recorded of what an engine serves; by itself everything.

    Args:
        sample: the share of requests that are chosen by a hash of their ids, as a numerator and a denominator.
        requests: globs of the ids of requests that are chosen.
        marked: whether requests are chosen that ask for it (`MARK`), as under ``sample`` and ``requests`` too.
        tokens: the positions of each sequence whose rows are kept: from the first to before the second (None: to
            the end).
        every: keep operators in each ``every``-th step of the engine only.
    """

    sample: tuple[int, int] | None = None
    requests: tuple[str, ...] = ()
    marked: bool = False
    tokens: tuple[int, int | None] | None = None
    every: int = 1

    @property
    def chooses(self) -> bool:
        """Whether there may be requests that are not chosen."""
        return self.marked or bool(self.requests) or self.sample is not None

    def takes(self, names: Sequence[str], mark: object = None) -> bool:
        """Whether a request is chosen.

        Args:
            names: what it is called, as its client and the engine's front end know it; the first one is hashed.
            mark: what its client says of it; see `MARK`.
        """
        if not self.chooses or mark in (RECORD_IT, TRIGGER_IT):
            return True
        if mark == SKIP_IT:
            return False
        if any(fnmatchcase(name, glob) for glob in self.requests for name in names):
            return True
        return self.sample is not None and _falls_under(names[0], *self.sample)

    def told(self) -> list[str]:
        """Notes for the reader of the trace on what is left out."""
        notes = []
        if self.chooses:
            ways = ["asked for it"]
            ways += [f"have an id like {' or '.join(self.requests)}"] if self.requests else []
            ways += ["are in a sample of {}/{} by their id".format(*self.sample)] if self.sample else []
            notes.append(f"Only requests are in this trace that {' or '.join(ways)}.")
        if self.tokens is not None:
            first, behind = self.tokens
            end = "on" if behind is None else f"to {behind - 1}"
            notes.append(f"Of operators, only positions {first} {end} of each sequence were recorded.")
        if self.every > 1:
            notes.append(f"Of operators, only one step in {self.every} was recorded.")
        return notes

    def as_dict(self) -> dict[str, Any]:
        lists = {name: value and list(value) for name, value in (("sample", self.sample), ("tokens", self.tokens))}
        return {**asdict(self), **lists, "requests": list(self.requests)}

    @classmethod
    def from_dict(cls, data: Any) -> Choice:
        """Reads what `as_dict` wrote; what is missing is the default.

        Raises:
            UsageError: there is no such key, or it does not take such a value.
        """
        given = checked(data, _TAKES, "what is chosen", whole=False)
        for name in ("sample", "requests", "tokens"):
            if given.get(name) is not None:
                given[name] = tuple(given[name])
        return cls(**given)


def _falls_under(name: str, numerator: int, denominator: int) -> bool:
    return xxhash.xxh3_64_intdigest(name.encode()) * denominator < numerator * _HASHES


def rate_of(text: str) -> tuple[int, int]:
    """A rate as a user writes it: ``1/1000``, ``0.001`` or ``0.1%``.

    Raises:
        UsageError: it is none, or not above 0 and at most 1.
    """
    try:
        number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
        rate = Fraction(number) / (100 if percent else 1)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1 or rate.denominator > _TERMS:
        raise UsageError(f"{text!r} is no share of requests; give one above 0 and at most 1, as in 1/1000 or 1%.")
    return rate.numerator, rate.denominator


def positions_of(text: str) -> tuple[int, int | None]:
    """Positions of a sequence as a user writes them: ``0:64``, ``:64`` or ``64:``.

    Raises:
        UsageError: there is no such range, or it is empty.
    """
    match = re.fullmatch(r"\s*(\d{0,9})\s*:\s*(\d{0,9})\s*", text, re.ASCII)
    if match is None or (match[2] and int(match[1] or 0) >= int(match[2])):
        raise UsageError(
            f"{text!r} is no range of positions in a sequence; give the first, and the first one behind it, as in "
            "0:64."
        )
    return int(match[1] or 0), int(match[2]) if match[2] else None
