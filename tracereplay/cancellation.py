"""What a pass shall cancel: a choice of operators and edges, as plain data that crosses processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Cancellation"]


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

    def as_dict(self) -> dict[str, Any]:
        return {
            "operators": sorted(self.operators), "edges": [list(edge) for edge in sorted(self.edges)],
            "everything": self.everything,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cancellation:
        edges = frozenset((str(site), int(index)) for site, index in data["edges"])
        return cls(frozenset(data["operators"]), edges, bool(data["everything"]))
