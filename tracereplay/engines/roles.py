"""What operators do, by class name: the families' tables, and how sites of a trace get their roles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from tracereplay.engines.family import ROLES, Family, Operator, Role
from tracereplay.event import Site

__all__ = ["RoleTable", "with_roles"]

_OTHER = Operator("other")


class RoleTable:
    """A family's table; the first matching entry counts.

    Args:
        entries: globs of class names, separated by spaces; the role; the formula (`Operator`).
    """

    def __init__(self, entries: Iterable[tuple[str, Role, str | None]]) -> None:
        self._entries = [
            (glob, Operator(role, formula)) for names, role, formula in entries for glob in names.split()
        ]
        self._found: dict[str, Operator] = {}

    def __getitem__(self, name: str) -> Operator:
        """The operator class ``name``; an unknown one has the role ``other``."""
        if name not in self._found:
            fits = (operator for glob, operator in self._entries if fnmatchcase(name, glob))
            self._found[name] = next(fits, _OTHER)
        return self._found[name]


def with_roles(sites: Mapping[str, Site], family: Family) -> dict[str, Site]:
    """The sites of a trace, with their recorded roles, or else those that ``family`` has for their classes."""
    return {
        name: site if site.role in ROLES else _told(site, family.operator(site.operator))
        for name, site in sites.items()
    }


def _told(site: Site, known: Operator) -> Site:
    return replace(site, role=known.role, formula=known.formula)
