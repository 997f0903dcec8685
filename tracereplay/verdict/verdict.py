"""The result of a comparison, as frozen values that every report form reads.

    Verdict
    ├── golden, candidate      Source
    ├── settings_diff          SettingDifference ...
    ├── first_divergence       Divergence (with Metrics)
    ├── operators              OperatorFinding ...   worst output of each site
    ├── edges                  EdgeFinding ...       one for each input
    ├── tokens                 TokenFinding
    ├── coverage               Coverage
    ├── routing                RoutingFinding ...  one for each router of a mixture of experts
    ├── kernels                Inside              what ran inside one operator, if kernels were recorded
    ├── isolated               Isolated            kernels replayed in isolation, or None
    ├── oracle                 Oracle              which side is nearer to float64 references, or None
    ├── rollout                Rollout             importance ratios, or None without logprobs
    └── closure, attribution, bisection   from a bisection, or None

``as_dict`` gives the JSON of schema 1 (keys are never renamed, only added); ``from_dict`` is its inverse.
Numbers that JSON cannot hold (nan, inf) are written as the strings ``"nan"``, ``"inf"`` and ``"-inf"``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tracereplay.errors import UsageError
from tracereplay.jsondata import one_of, optional
from tracereplay.verdict.bisection import Bisection
from tracereplay.verdict.findings import (
    Coverage,
    Divergence,
    EdgeFinding,
    OperatorFinding,
    RoutingFinding,
    SettingDifference,
    Source,
)
from tracereplay.verdict.inside import Inside
from tracereplay.verdict.isolated import Isolated
from tracereplay.verdict.oracle import Oracle
from tracereplay.verdict.proof import Attribution, Closure
from tracereplay.verdict.rollout import Rollout
from tracereplay.verdict.tokens import TokenFinding

__all__ = ["SCHEMA", "Cause", "Mode", "Outcome", "Verdict"]

SCHEMA = 1

Outcome: TypeAlias = Literal["match", "diverged", "inconclusive"]
Mode: TypeAlias = Literal["injected", "rerun", "isolated", "compare"]
Cause: TypeAlias = Literal["operator", "edge", "rounding", "setting", "structure", "unobserved"]

_EXIT = {"match": 0, "diverged": 1, "inconclusive": 3}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a comparison, with its evidence.

    >>> verdict = tracereplay.compare("golden.trace", "candidate.trace")
    >>> verdict.matches, verdict.exit_code, verdict.reasons
    (True, 0, ())
    >>> tracereplay.Verdict.from_dict(json.loads(verdict.to_json())) == verdict
    True

    Args:
        first_visible: injected mode only: where the rerun first leaves the tolerance. It shows where the
            difference surfaces, not what is to blame.
        notes: what else a reader should know: schedules that differ, rows computed twice, gaps.
    """

    verdict: Outcome
    mode: Mode
    cause: Cause | None
    reasons: tuple[str, ...]
    golden: Source
    candidate: Source
    settings_diff: tuple[SettingDifference, ...] = ()
    first_divergence: Divergence | None = None
    operators: tuple[OperatorFinding, ...] = ()
    edges: tuple[EdgeFinding, ...] = ()
    tokens: TokenFinding = field(default_factory=TokenFinding)
    coverage: Coverage = field(default_factory=Coverage)
    closure: Closure | None = None
    attribution: tuple[Attribution, ...] | None = None
    first_visible: Divergence | None = None
    notes: tuple[str, ...] = ()
    rollout: Rollout | None = None
    bisection: Bisection | None = None
    routing: tuple[RoutingFinding, ...] = ()
    kernels: Inside | None = None
    isolated: Isolated | None = None
    oracle: Oracle | None = None

    @property
    def matches(self) -> bool:
        """Whether the verdict is ``match``; an inconclusive one does not match."""
        return self.verdict == "match"

    @property
    def exit_code(self) -> int:
        """The exit code of the command line: match 0, diverged 1, inconclusive 3."""
        return _EXIT[self.verdict]

    def to_json(self) -> str:
        """`as_dict` as text, indented, with a newline at its end: what ``--json`` writes."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False, default=str) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON-ready data, schema 1."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "mode": self.mode,
            "cause": self.cause,
            "reasons": list(self.reasons),
            "golden": self.golden.as_dict(),
            "candidate": self.candidate.as_dict(),
            "settings_diff": _dicts(self.settings_diff),
            "first_divergence": None if self.first_divergence is None else self.first_divergence.as_dict(),
            "operators": _dicts(self.operators),
            "edges": _dicts(self.edges),
            "tokens": self.tokens.as_dict(),
            "coverage": self.coverage.as_dict(),
            "closure": None if self.closure is None else self.closure.as_dict(),
            "attribution": None if self.attribution is None else _dicts(self.attribution),
            "first_visible": None if self.first_visible is None else self.first_visible.as_dict(),
            "notes": list(self.notes),
            "rollout": None if self.rollout is None else self.rollout.as_dict(),
            "bisection": None if self.bisection is None else self.bisection.as_dict(),
            "routing": _dicts(self.routing),
            "kernels": None if self.kernels is None else self.kernels.as_dict(),
            "isolated": None if self.isolated is None else self.isolated.as_dict(),
            "oracle": None if self.oracle is None else self.oracle.as_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """The inverse of `as_dict`; unknown keys are ignored.

        Raises:
            UsageError: the data are not a verdict of a schema that this version knows.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            schema = data.get("schema") if isinstance(data, Mapping) else None
            raise UsageError(f"This is not a verdict of schema {SCHEMA}: its schema is {schema!r}.")
        try:
            return cls._read(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"This verdict cannot be read: {error!r} is missing or wrong.") from error

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> Verdict:
        parts = data["attribution"]
        return cls(
            verdict=one_of(data["verdict"], _EXIT, "verdict"),
            mode=data["mode"],
            cause=data["cause"],
            reasons=tuple(data["reasons"]),
            golden=Source.from_dict(data["golden"]),
            candidate=Source.from_dict(data["candidate"]),
            settings_diff=tuple(SettingDifference.from_dict(s) for s in data["settings_diff"]),
            first_divergence=optional(Divergence.from_dict, data["first_divergence"]),
            operators=tuple(OperatorFinding.from_dict(o) for o in data["operators"]),
            edges=tuple(EdgeFinding.from_dict(e) for e in data["edges"]),
            tokens=TokenFinding.from_dict(data["tokens"]),
            coverage=Coverage.from_dict(data["coverage"]),
            closure=optional(Closure.from_dict, data["closure"]),
            attribution=None if parts is None else tuple(Attribution.from_dict(a) for a in parts),
            first_visible=optional(Divergence.from_dict, data.get("first_visible")),
            notes=tuple(data.get("notes", ())),
            rollout=optional(Rollout.from_dict, data.get("rollout")),
            bisection=optional(Bisection.from_dict, data.get("bisection")),
            routing=tuple(RoutingFinding.from_dict(r) for r in data.get("routing", ())),
            kernels=optional(Inside.from_dict, data.get("kernels")),
            isolated=optional(Isolated.from_dict, data.get("isolated")),
            oracle=optional(Oracle.from_dict, data.get("oracle")),
        )


def _dicts(values: Sequence[Any]) -> list[dict[str, Any]]:
    return [value.as_dict() for value in values]
