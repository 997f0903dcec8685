"""Operators that only one engine runs, and operators that were built differently."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from tracereplay.comparator.numbers.tables import PassIndex
from tracereplay.event import Site

__all__ = ["Unshared", "built_otherwise", "unshared_before"]


@dataclass(frozen=True, slots=True)
class Unshared:
    """Sites that only one side has, in execution order."""

    golden: tuple[str, ...] = ()
    candidate: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.golden or self.candidate)


def unshared_before(golden: PassIndex, candidate: PassIndex, site: str) -> Unshared:
    """What runs right before ``site`` on one side only, and so produced what arrives there."""
    return Unshared(
        _before(golden, site, candidate.calls.first),
        _before(candidate, site, golden.calls.first),
    )


def _before(index: PassIndex, site: str, shared: Container[str]) -> tuple[str, ...]:
    at = index.calls.first.get(site, 0)
    found: list[str] = []
    for order in range(at - 1, -1, -1):
        call = index.calls[order]
        if call.site in shared or call.step != index.calls[at].step:
            break
        found.append(call.site)
    return tuple(dict.fromkeys(reversed(found)))


def built_otherwise(golden: Site | None, candidate: Site | None) -> tuple[tuple[str, Any, Any], ...]:
    """Configuration in which an operator differs, of what both sides recorded: name, golden, candidate.

    What an operator is called is no configuration, though some keep their own name.
    """
    if golden is None or candidate is None:
        return ()
    mine, theirs = golden.config, candidate.config
    shared = (key for key in mine if key in theirs and theirs[key] != candidate.name)
    return tuple((key, mine[key], theirs[key]) for key in shared if mine[key] != theirs[key])
