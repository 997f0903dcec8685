"""Names of a package whose modules are imported when one of the names is first asked for (PEP 562).

Why: importing any module of a package runs the package's ``__init__`` first. Without this, ``tracereplay --help``
would import all that reads traces, and ``tracereplay show`` all that judges.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["imported_on_use"]


def imported_on_use(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package.

    Args:
        package: its full name.
        modules: its public names, by the modules that have them.
    """
    places = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(places[name]), name)
        setattr(sys.modules[package], name, found)  # so that this function is not asked for it again
        return found

    return find
