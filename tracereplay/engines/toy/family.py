"""The toy as a family of engines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tracereplay.engines.family import Operator, Versions
from tracereplay.engines.toy.roles import OPERATORS

__all__ = ["TOY", "VERSION"]

VERSION = "2.0"
_INSPECTION = f"""
import json, sys
print("INSPECTED" + json.dumps({{"python": "%d.%d.%d" % sys.version_info[:3], "toy": "{VERSION}"}}))
"""


class _Toy:
    """See `engines.family.Family`."""

    name = "toy"
    title = "the toy engine"
    package = "toy"
    requirement = None
    driver = "tracereplay.engines.toy.driver"
    entry_points = None
    inspection = _INSPECTION
    alone = None
    compiled = None

    @property
    def effects(self) -> str:
        return (resources.files(str(__package__)) / "settings.toml").read_text(encoding="utf-8")

    def why_unusable(self, python: Path, versions: Versions) -> str | None:
        return None  # it needs what tracereplay itself needs, and that is running

    def environment(self, variables: Mapping[str, str], cache: Path) -> dict[str, str]:
        return dict(variables)

    def operator(self, name: str) -> Operator:
        return OPERATORS[name]

    def write_model(self, directory: Path) -> Mapping[str, Any]:
        """A name, from which the toy's weights follow."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps({"name": "toy"}), encoding="utf-8")
        return {}


TOY = _Toy()
