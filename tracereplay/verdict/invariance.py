"""Whether an engine computes the same bits for the same row however it is served, as frozen values.

    Invariance
    ├── varied   Varied ...       one for each thing that was varied, ``repeat`` (nothing) first
    ├── first    FirstDifference  the first operator with an error of its own, or None
    └── operators OwnDifference ...  all of them

``as_dict`` gives the JSON of schema 1 (keys are never renamed, only added); ``from_dict`` is its inverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tracereplay.errors import UsageError
from tracereplay.jsondata import optional

__all__ = [
    "REPEAT", "SCHEMA", "SURE", "Count", "FirstDifference", "Invariance", "OwnDifference", "RowCounts", "Varied",
    "flips_between",
]  # fmt: skip

SCHEMA = 1
REPEAT = "repeat"  # the control: the same run again
SURE = 0.01  # chance of rows being equal although another kernel ran, below which that counts as "the same kernel"


@dataclass(frozen=True, slots=True, order=True)
class Count:
    """Rows that an operator computed in calls of two sizes.

    Args:
        base: rows of the call in the base run, padding included.
        variant: rows of the call in the varied run.
        rows: compared, of those whose inputs are equal bit for bit.
        differing: of these, rows whose results differ.
    """

    base: int
    variant: int
    rows: int
    differing: int


def flips_between(counts: Sequence[Count]) -> tuple[int, int] | None:
    """(a, b): up to a rows a call computes one way, from b rows on another; None if no such number explains it.

    The number N from which on it computes otherwise is above the smaller and at most the larger size of every pair
    of calls that differ, and not so for any pair that agrees. A pair of few rows may agree by chance: it counts
    only if, at the share of rows that differ elsewhere, as many equal rows have a chance below 1 %.
    """
    differing = [c for c in counts if c.differing]
    low = max((min(c.base, c.variant) for c in differing), default=0)
    high = min((max(c.base, c.variant) for c in differing), default=0)
    if low >= high:
        return None
    share = sum(c.differing for c in differing) / sum(c.rows for c in differing)
    candidates = set(range(low + 1, high + 1))
    for count in counts:
        if not count.differing and (1 - share) ** count.rows < SURE:
            small, large = sorted((count.base, count.variant))
            candidates -= set(range(max(small + 1, low), min(large, high) + 1))
    if not candidates or max(candidates) - min(candidates) + 1 != len(candidates):
        return None
    return min(candidates) - 1, max(candidates)


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Which rows of an operator differ, and in calls of which sizes.

    Args:
        first: (request, sequence, position) of the first of them, in the order of the base run.
        differing: rows that differ although the operator's inputs for them are equal.
        of: rows whose inputs are equal.
        counts: the same by the sizes of the calls.
        between: see `flips_between`, of all that was varied; after a search the two are neighbours.
    """

    first: tuple[int, int, int]
    differing: int
    of: int
    counts: tuple[Count, ...] = ()
    between: tuple[int, int] | None = None

    @property
    def flips_at(self) -> int | None:
        """The number of rows in a call from which on it computes otherwise; None if that is not known exactly."""
        if self.between is None or self.between[1] - self.between[0] != 1:
            return None
        return self.between[1]

    def as_dict(self) -> dict[str, Any]:
        differing = [c for c in self.counts if c.differing]
        return {
            "first": dict(zip(("request", "sequence", "position"), self.first, strict=True)),
            "differing": self.differing, "of": self.of,
            "base": sorted({c.base for c in differing}), "variant": sorted({c.variant for c in differing}),
            "counts": [asdict(c) for c in self.counts],
            "flips_at": self.flips_at,
            "flips_between": None if self.between is None else list(self.between),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RowCounts:
        first = data["first"]
        counts, between = tuple(Count(**c) for c in data["counts"]), data["flips_between"]
        key = first["request"], first["sequence"], first["position"]
        return cls(
            key, data["differing"], data["of"], counts, None if between is None else (between[0], between[1])
        )


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """An operator, or the edge before it, that gives other bits for the same row.

    Args:
        site, operator: where, and of which class.
        kind: ``operator``: its inputs are equal and its outputs are not; ``edge``: what arrives differs, although
            everything before is equal.
        index: of the output, or of an edge's input.
        varied: what was varied.
        value: the value of it that shows the difference.
        rows: which rows.
    """

    site: str
    operator: str
    kind: str
    index: int
    varied: str
    value: int | str
    rows: RowCounts

    def with_rows(self, rows: RowCounts) -> FirstDifference:
        return replace(self, rows=rows)

    def as_dict(self) -> dict[str, Any]:
        return {
            "site": self.site, "operator": self.operator, "kind": self.kind, "index": self.index,
            "varied": self.varied, "value": self.value, "rows": self.rows.as_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FirstDifference:
        plain = {k: data[k] for k in ("site", "operator", "kind", "index", "varied", "value")}
        return cls(**plain, rows=RowCounts.from_dict(data["rows"]))


@dataclass(frozen=True, slots=True)
class Varied:
    """One thing that was varied.

    Args:
        what: its name.
        values: those tried, the base run's first.
        held: whether every compared row had the same bits; None if it could not be varied, or was not.
        reason: why not, as a sentence; empty otherwise.
        rows: outputs' rows compared, over all operators and values.
        first: the first operator with an error of its own.
    """

    what: str
    values: tuple[int | str, ...]
    held: bool | None
    reason: str = ""
    rows: int = 0
    first: FirstDifference | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "what": self.what, "values": list(self.values), "held": self.held, "reason": self.reason,
            "rows": self.rows, "first": None if self.first is None else self.first.as_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Varied:
        first = optional(FirstDifference.from_dict, data["first"])
        return cls(data["what"], tuple(data["values"]), data["held"], data["reason"], data["rows"], first)


@dataclass(frozen=True, slots=True)
class OwnDifference:
    """An operator that differs on equal inputs, under one thing that was varied."""

    site: str
    operator: str
    kind: str
    varied: str
    differing: int
    of: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Invariance:
    """The outcome.

    Args:
        varied: what was varied.
        first: the first operator, in the order of a forward pass, over all that was varied.
        operators: every operator with an error of its own, in that order.
        engine: the engine's description of itself.
        requests, tokens: of the workload: requests, and tokens of their prompts and generations.
        notes: what else a reader should know.
    """

    varied: tuple[Varied, ...]
    first: FirstDifference | None = None
    operators: tuple[OwnDifference, ...] = ()
    engine: Mapping[str, Any] = field(default_factory=dict)
    requests: int = 0
    tokens: int = 0
    notes: tuple[str, ...] = ()

    @property
    def invariant(self) -> bool | None:
        """True if all held, False if something did not, None if something could not be varied."""
        held = [varied.held for varied in self.varied]
        return False if False in held else None if None in held else True

    @property
    def exit_code(self) -> int:
        """The exit code of the command line: invariant 0, not 1, undecided 3."""
        return {True: 0, False: 1, None: 3}[self.invariant]

    def as_dict(self) -> dict[str, Any]:
        """As JSON-ready data, schema 1."""
        return {
            "schema": SCHEMA, "invariant": self.invariant, "varied": [v.as_dict() for v in self.varied],
            "first": None if self.first is None else self.first.as_dict(),
            "operators": [o.as_dict() for o in self.operators], "engine": dict(self.engine),
            "requests": self.requests, "tokens": self.tokens, "notes": list(self.notes),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Invariance:
        """The inverse of `as_dict`; unknown keys are ignored.

        Raises:
            UsageError: the data are not of a schema that this version knows.
        """
        if data.get("schema") != SCHEMA:
            raise UsageError(f"This is not of schema {SCHEMA}: its schema is {data.get('schema')!r}.")
        try:
            return cls(
                tuple(map(Varied.from_dict, data["varied"])), optional(FirstDifference.from_dict, data["first"]),
                tuple(OwnDifference(**operator) for operator in data["operators"]), data["engine"],
                data["requests"], data["tokens"], tuple(data["notes"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"This result cannot be read: {error!r} is missing or wrong.") from error
