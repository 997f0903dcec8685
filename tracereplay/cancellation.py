"""What a pass shall cancel: a choice of operators and edges, as plain data that crosses processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracereplay.checked import FLAG, Check, checked, list_of

__all__ = ["Cancellation"]


def _is_edge(value: Any) -> bool:
    return isinstance(value, list) and [type(part) for part in value] == [str, int]


_TAKES: Mapping[str, Check] = {
    "operators": list_of(lambda site: isinstance(site, str), "sites"),
    "edges": list_of(_is_edge, "pairs, each a site and the number of its input"),
    "everything": FLAG,
}


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Operators and edges.

    Args:
        operators: sites whose outputs are meant, all of them.
        edges: (site, input) where what arrives is meant.
        everything: all operators and edges there are.
    """

    operators: frozenset[str] = frozenset()
    edges: frozenset[tuple[str, int]] = frozenset()
    everything: bool = False

    def takes(self, site: str, side: str, index: int) -> bool:
        """Whether a tensor is meant; ``side`` is ``in`` or ``out``."""
        return self.everything or (site in self.operators if side == "out" else (site, index) in self.edges)

    def takes_of(self, site: str) -> bool:
        """Whether any of a site's tensors is meant."""
        return self.everything or site in self.operators or any(site == of for of, _ in self.edges)

    def as_dict(self) -> dict[str, Any]:
        return {
            "operators": sorted(self.operators), "edges": [list(edge) for edge in sorted(self.edges)],
            "everything": self.everything,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Any) -> Cancellation:
        """Reads what `as_dict` wrote.

        Raises:
            UsageError: a key is unknown or missing, or its value is not of its type; the message names it.
        """
        given = checked(data, _TAKES, "the cancellation")
        edges = frozenset((site, index) for site, index in given["edges"])
        return cls(frozenset(given["operators"]), edges, given["everything"])
