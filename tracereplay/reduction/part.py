"""A part of two traces: what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Part"]


@dataclass(frozen=True)
class Part:
    """What is kept of golden and the candidate.

    Args:
        requests: by their numbers in the whole traces.
        tokens: by request, how many generated tokens are kept at most; of others all.
        units: operators, by their numbers in `Whole.units`; None: all.
        positions: those of each sequence whose rows of operators are kept; see `trace.cutting.Cut`.
        kernels: units of which kernels are kept; None: of all that are kept.
    """

    requests: tuple[int, ...]
    tokens: Mapping[int, int] = field(default_factory=dict)
    units: frozenset[int] | None = None
    positions: tuple[int, int | None] = (0, None)
    kernels: frozenset[int] | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same part."""
        return self.requests, tuple(sorted(self.tokens.items())), self.units, self.positions, self.kernels
