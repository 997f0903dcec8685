"""The toy as a family of engines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tracereplay.engines.family import Operator, RootCause, Versions
from tracereplay.engines.toy.checkpoint import write_checkpoint
from tracereplay.engines.toy.roles import OPERATORS

__all__ = ["TOY", "VERSION"]

VERSION = "2.0"
# The toy comes with tracereplay, so it exists wherever tracereplay does.
_INSPECTION = f"""
import importlib.util, json, sys
toy = "{VERSION}" if importlib.util.find_spec("tracereplay") else None
print("INSPECTED" + json.dumps({{"python": "%d.%d.%d" % sys.version_info[:3], "toy": toy}}))
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
    brings_model = True
    bug_report = None
    own = "tracereplay.engines.toy.own"

    @property
    def effects(self) -> str:
        return (resources.files(str(__package__)) / "settings.toml").read_text(encoding="utf-8")

    def why_unusable(self, python: Path, versions: Versions) -> str | None:
        if versions.get("toy") is not None:
            return None
        return (
            f"{python} (Python {versions.get('python')}) has no tracereplay, of which the toy engine is a part. "
            "Leave out --python, and the interpreter that runs tracereplay is taken."
        )

    def environment(self, variables: Mapping[str, str], cache: Path) -> dict[str, str]:
        return dict(variables)

    def taps_environment(self, variables: Mapping[str, str], cache: Path) -> dict[str, str]:
        return {}

    def operator(self, name: str) -> Operator:
        return OPERATORS[name]

    def ranks_environment(self, described: Mapping[str, Any], ranks: int) -> Mapping[str, str]:
        return {}

    def other_graphs(
        self, described: Mapping[str, Any], given: Mapping[str, Any], requests: int
    ) -> Mapping[str, Mapping[str, Any]] | str:
        return "The toy engine has no graphs."

    def root_cause(self, error: str, log: Iterable[str]) -> RootCause | None:
        return None  # it is one process

    def write_model(self, directory: Path) -> Mapping[str, Any]:
        """A checkpoint with weights of its own."""
        write_checkpoint(directory)
        return {}


TOY = _Toy()
