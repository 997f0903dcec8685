"""A census: what computes in a model's steps, counted without regard to what is recorded of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Census", "Counted", "Unowned"]


@dataclass(frozen=True, slots=True)
class Counted:
    """A module that computes floating-point values outside of operators.

    Args:
        module: its path in the model; empty for the model itself.
        kind: its class.
        calls: how often it was called.
        computed: dispatched calls that computed such values in it, and in no module below it.
    """

    module: str
    kind: str
    calls: int
    computed: int


@dataclass(frozen=True, slots=True)
class Unowned:
    """A parameter or buffer that belongs to no operator; ``users``: modules that took it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Census:
    """What computed in the pass up to here, whether or not a tap saw it (`hooks.census`).

    Args:
        operators: modules that a tap surrounds and that were called.
        calls: of operators.
        unobserved: modules that compute and have no operator in them, or take parameters between theirs.
        between: other modules that compute between their operators; edges show what they do.
        parameters: those that belong to no operator.
    """

    operators: int
    calls: int
    unobserved: tuple[Counted, ...]
    between: tuple[Counted, ...]
    parameters: tuple[Unowned, ...]
