"""Where two traces differ: settings, operators, edges, routers, and what could not be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tracereplay.jsondata import optional, plain, real
from tracereplay.verdict.census import CensusFinding
from tracereplay.verdict.measures import ErrorClass, Metrics, Tolerance

__all__ = [
    "Coverage", "Divergence", "EdgeFinding", "Effect", "NotCompared", "OperatorFinding", "Pairing",
    "RoutingFinding", "SettingDifference", "Source",
]  # fmt: skip

Effect: TypeAlias = Literal["numeric", "semantic", "none", "unknown"]


@dataclass(frozen=True, slots=True)
class Source:
    """One side: its engine (name, versions, settings, device), its trace and the trace's digest."""

    engine: Mapping[str, Any]
    trace: str
    digest: str | None

    def as_dict(self) -> dict[str, Any]:
        return {"engine": dict(self.engine), "trace": self.trace, "digest": self.digest}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Source:
        return cls(dict(data["engine"]), data["trace"], data["digest"])


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A setting, version or variable in which the engines differ, and what that can change."""

    name: str
    golden: Any
    candidate: Any
    effect: Effect

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "golden": self.golden, "candidate": self.candidate, "effect": self.effect}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SettingDifference:
        return cls(data["name"], data["golden"], data["candidate"], data["effect"])


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place that is out of tolerance, in golden execution order.

    Args:
        kind: ``operator`` (its output differs) or ``edge`` (what arrives at it differs).
        site, operator, kernel: where; ``kernel`` is None at operator level.
        error_class: why it is out of tolerance (JSON: ``class``).
        request, sequence, position, step: the worst row of the first call that shows it.
        index: of the output, or of the input for an edge.
        metrics: over that first call.
        tolerance: what was applied.
        passing_tolerance: the smallest multiple of it that would have passed, over all calls.
        passing_bias: where it leans: the limit on leans, in ulp, that would have let it pass; else None.
        request_id: the request's id as its client has it; None where golden does not say.
    """

    kind: Literal["operator", "edge"]
    site: str
    operator: str
    error_class: ErrorClass
    request: int
    sequence: int
    position: int
    step: int
    index: int
    metrics: Metrics
    tolerance: Tolerance
    passing_tolerance: Tolerance
    kernel: str | None = None
    passing_bias: float | None = None
    request_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "site": self.site, "operator": self.operator, "kernel": self.kernel,
            "class": self.error_class, "request": self.request, "request_id": self.request_id,
            "sequence": self.sequence,
            "position": self.position, "step": self.step,
            ("output" if self.kind == "operator" else "input"): self.index,
            "metrics": self.metrics.as_dict(), "tolerance": self.tolerance.as_dict(),
            "passing_tolerance": self.passing_tolerance.as_dict(), "passing_bias": plain(self.passing_bias),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Divergence:
        kind: Literal["operator", "edge"] = data["kind"]
        return cls(
            kind=kind,
            site=data["site"],
            operator=data["operator"],
            error_class=data["class"],
            request=data["request"],
            sequence=data["sequence"],
            position=data["position"],
            step=data["step"],
            index=data["output" if kind == "operator" else "input"],
            metrics=Metrics.from_dict(data["metrics"]),
            tolerance=Tolerance.from_dict(data["tolerance"]),
            passing_tolerance=Tolerance.from_dict(data["passing_tolerance"]),
            kernel=data.get("kernel"),
            passing_bias=real(data.get("passing_bias")),
            request_id=data.get("request_id"),
        )


@dataclass(frozen=True, slots=True)
class Pairing:
    """What of golden's an operator was compared with, where that is not the operator of its name.

    Args:
        golden_site: golden's name; those of several that the candidate joins, with " | " between. None where it is
            the candidate's name.
        relation: ``rename``, ``join`` (side by side in one of the two), ``sum`` (one is given x and residual and
            the other their sum) or ``reorder`` (q, k and v head by head in one of the two).
        paired_by: ``name``, ``tensors`` (of the checkpoint), ``shape`` (role, order and shape) or ``table``.
    """

    golden_site: str | None
    relation: str
    paired_by: str

    def as_dict(self) -> dict[str, Any]:
        named = {} if self.golden_site is None else {"golden_site": self.golden_site}
        return {**named, "relation": self.relation, "paired_by": self.paired_by}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Pairing | None:
        """Read from the finding's own keys; None where it was compared with the operator of its name."""
        if data.get("relation") is None:
            return None
        return cls(data.get("golden_site"), data["relation"], data["paired_by"])


@dataclass(frozen=True, slots=True)
class OperatorFinding:
    """What an operator does differently, over all its calls; ``metrics`` are those of its worst output.

    ``passing_tolerance`` is as in `Divergence`, of that output; None where nothing was compared. The keys of
    ``pairing`` stand among the others, and only where there is one.
    """

    site: str
    operator: str
    error_class: ErrorClass
    calls: int
    rows: int
    metrics: Metrics
    output: int = 0
    tolerance: Tolerance | None = None
    reason: str | None = None
    passing_tolerance: Tolerance | None = None
    pairing: Pairing | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "site": self.site, "operator": self.operator, "class": self.error_class, "calls": self.calls,
            "rows": self.rows, "metrics": self.metrics.as_dict(), "output": self.output,
            "tolerance": None if self.tolerance is None else self.tolerance.as_dict(), "reason": self.reason,
            "passing_tolerance": None if self.passing_tolerance is None else self.passing_tolerance.as_dict(),
            **({} if self.pairing is None else self.pairing.as_dict()),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OperatorFinding:
        return cls(
            data["site"], data["operator"], data["class"], data["calls"], data["rows"],
            Metrics.from_dict(data["metrics"]), data.get("output", 0), _tolerance(data), data.get("reason"),
            _tolerance(data, "passing_tolerance"), Pairing.from_dict(data),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EdgeFinding:
    """How what arrives at an operator's input differs, over all its calls; see `OperatorFinding`.

    ``inputs`` are those whose sum is meant, where golden was given the sum; there only.
    """

    site: str
    input: int
    error_class: ErrorClass
    rows: int
    metrics: Metrics
    operator: str = ""
    tolerance: Tolerance | None = None
    reason: str | None = None
    passing_tolerance: Tolerance | None = None
    pairing: Pairing | None = None
    inputs: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "site": self.site, "input": self.input, "class": self.error_class, "rows": self.rows,
            "metrics": self.metrics.as_dict(), "operator": self.operator,
            "tolerance": None if self.tolerance is None else self.tolerance.as_dict(), "reason": self.reason,
            "passing_tolerance": None if self.passing_tolerance is None else self.passing_tolerance.as_dict(),
            **({} if self.pairing is None else self.pairing.as_dict()),
            **({"inputs": list(self.inputs)} if self.inputs else {}),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EdgeFinding:
        return cls(
            data["site"], data["input"], data["class"], data["rows"], Metrics.from_dict(data["metrics"]),
            data.get("operator", ""), _tolerance(data), data.get("reason"), _tolerance(data, "passing_tolerance"),
            Pairing.from_dict(data), tuple(data.get("inputs", ())),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RoutingFinding:
    """Where a router of a mixture of experts sends rows, in a pass in which nothing is fed.

    Args:
        site: the experts' layer.
        rows: compared.
        flips: rows that go to other experts than golden's.
        near_ties: rows whose last chosen logit and the next lie no further apart than the router's own error on
            golden inputs; None where that was not measured.
    """

    site: str
    rows: int
    flips: int
    near_ties: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"site": self.site, "rows": self.rows, "flips": self.flips, "near_ties": self.near_ties}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RoutingFinding:
        return cls(data["site"], data["rows"], data["flips"], data["near_ties"])


@dataclass(frozen=True, slots=True)
class NotCompared:
    """Rows of a site that were left out, and why."""

    site: str
    rows: int
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return {"site": self.site, "rows": self.rows, "reason": self.reason}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NotCompared:
        return cls(data["site"], data["rows"], data["reason"])


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the golden trace was compared.

    Args:
        golden_calls: operator calls in the golden trace.
        compared_calls: those with at least one output row compared.
        excused_calls: those that need not be (the rest of a request whose tokens parted, shared prompts).
        not_compared: what was left out.
        census: what computes in the two engines, whether or not it was recorded.
    """

    golden_calls: int = 0
    compared_calls: int = 0
    not_compared: tuple[NotCompared, ...] = ()
    excused_calls: int = 0
    census: CensusFinding = field(default_factory=CensusFinding)

    @property
    def share(self) -> float:
        """Compared calls over those that could be, 0 to 1; 0 if there is nothing to compare."""
        due = self.golden_calls - self.excused_calls
        return self.compared_calls / due if due > 0 else float(self.golden_calls > 0)

    def as_dict(self) -> dict[str, Any]:
        return {
            "golden_calls": self.golden_calls, "compared_calls": self.compared_calls,
            "not_compared": [n.as_dict() for n in self.not_compared], "excused_calls": self.excused_calls,
            "census": self.census.as_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Coverage:
        rest = tuple(NotCompared.from_dict(n) for n in data["not_compared"])
        census = CensusFinding.from_dict(data.get("census"))
        return cls(data["golden_calls"], data["compared_calls"], rest, data.get("excused_calls", 0), census)


def _tolerance(data: Mapping[str, Any], key: str = "tolerance") -> Tolerance | None:
    return optional(Tolerance.from_dict, data.get(key))
