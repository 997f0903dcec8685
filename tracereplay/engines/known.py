"""The known families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracereplay.engines.family import Family
from tracereplay.engines.toy.family import TOY
from tracereplay.engines.vllm.family import VLLM
from tracereplay.errors import UsageError

__all__ = ["DEFAULT", "EXAMPLE", "FAMILIES", "PACKAGE", "family_named", "family_of"]

DEFAULT = VLLM.name  # of engines registered and traces recorded before there was another
EXAMPLE = VLLM.requirement  # of a requirement, for messages
PACKAGE = EXAMPLE.partition("==")[0]  # whose releases are bisected
FAMILIES: Mapping[str, Family] = {family.name: family for family in (VLLM, TOY)}


def family_named(name: str) -> Family:
    """The family of that name.

    Raises:
        UsageError: it does not exist.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    raise UsageError(f"There is no family of engines named {name!r}; there are {' and '.join(sorted(FAMILIES))}.")


def family_of(engine: Mapping[str, Any]) -> Family:
    """The family of an engine as a trace describes it (``Trace.run.engine``).

    Older traces do not name it, so it is recognized by its versions. The result is always one of `FAMILIES`.
    """
    named = FAMILIES.get(str(engine.get("family")))
    if named is not None:
        return named
    versions = engine.get("versions")
    known = versions if isinstance(versions, Mapping) else {}
    return next((family for family in FAMILIES.values() if known.get(family.package)), FAMILIES[DEFAULT])
