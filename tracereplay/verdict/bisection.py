"""What a bisection did and found, as frozen values; `Verdict.bisection` holds them.

The shares that operators or settings explain are in `Verdict.attribution`, the closure check in
`Verdict.closure`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tracereplay.jsondata import optional, plain, real

__all__ = ["Bisection", "BisectionKind", "Member", "Skipped", "Tried"]

BisectionKind: TypeAlias = Literal["operators", "settings", "versions"]


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the minimal set.

    Args:
        name: a site, a site and its input, or a setting.
        operator: class of the operator (operators only).
        error_class: of its own error (operators only; JSON: ``class``).
        value: golden's, by which parity came back (settings only).
    """

    name: str
    operator: str = ""
    error_class: str = ""
    value: Any = None

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "operator": self.operator, "class": self.error_class, "value": self.value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Member:
        return cls(data["name"], data["operator"], data["class"], data["value"])


@dataclass(frozen=True, slots=True)
class Skipped:
    """What could not be tried, and why."""

    name: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "reason": self.reason}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Skipped:
        return cls(data["name"], data["reason"])


@dataclass(frozen=True, slots=True)
class Tried:
    """A version that was tried: ``good``, ``bad`` or ``skipped``, and why."""

    version: str
    outcome: str
    why: str

    def as_dict(self) -> dict[str, Any]:
        return {"version": self.version, "outcome": self.outcome, "why": self.why}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tried:
        return cls(data["version"], data["outcome"], data["why"])


@dataclass(frozen=True, slots=True)
class Bisection:
    """How a cause was searched for.

    Args:
        kind: what was swapped.
        passes: generations after the replay that started it.
        class_passes: how many of them it took to settle the classes of operators.
        engine_starts: engines started, that of the replay included.
        positions: tokens whose logprobs are measured.
        criterion: when parity counts as restored, in words.
        minimal: whose cancelling (or setting) restores parity, and of which none can be left out; None if no set
            was found that does.
        proven: whether each member was shown to be needed; False if the passes ran out before.
        largest_left: operators only: what differs most on golden inputs of all that is not in the minimal set.
        complement_restores: whether cancelling all but the minimal set restores parity as well, if tried.
        unexplained: share of the mean squared logprob difference that stays with everything cancelled.
        arguments: the minimal set as arguments for the command line.
        skipped: what could not be tried.
        tried: versions, in the order in which they were tried.
        first_bad, last_good: versions; None where they could not be told.
    """

    kind: BisectionKind
    passes: int = 0
    engine_starts: int = 0
    positions: int = 0
    criterion: str = ""
    minimal: tuple[Member, ...] | None = None
    proven: bool = False
    complement_restores: bool | None = None
    unexplained: float | None = None
    arguments: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    tried: tuple[Tried, ...] = ()
    first_bad: str | None = None
    last_good: str | None = None
    largest_left: Member | None = None
    class_passes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON-compatible data."""
        return {
            "kind": self.kind, "passes": self.passes, "engine_starts": self.engine_starts,
            "positions": self.positions, "criterion": self.criterion,
            "minimal": None if self.minimal is None else [m.as_dict() for m in self.minimal],
            "proven": self.proven, "complement_restores": self.complement_restores,
            "unexplained": plain(self.unexplained),
            "arguments": list(self.arguments), "skipped": [s.as_dict() for s in self.skipped],
            "tried": [t.as_dict() for t in self.tried], "first_bad": self.first_bad, "last_good": self.last_good,
            "class_passes": self.class_passes,
            "largest_left": None if self.largest_left is None else self.largest_left.as_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Bisection:
        """The inverse of `as_dict`."""
        minimal = data["minimal"]
        return cls(
            kind=data["kind"],
            passes=data["passes"],
            engine_starts=data["engine_starts"],
            positions=data["positions"],
            criterion=data["criterion"],
            minimal=None if minimal is None else tuple(Member.from_dict(m) for m in minimal),
            proven=data["proven"],
            complement_restores=data["complement_restores"],
            unexplained=real(data["unexplained"]),
            arguments=tuple(data["arguments"]),
            skipped=tuple(Skipped.from_dict(s) for s in data["skipped"]),
            tried=tuple(Tried.from_dict(t) for t in data["tried"]),
            first_bad=data["first_bad"],
            last_good=data["last_good"],
            class_passes=data["class_passes"],
            largest_left=optional(Member.from_dict, data["largest_left"]),
        )
