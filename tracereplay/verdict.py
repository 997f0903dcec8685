"""What a comparison found, as frozen values that every report form reads.

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
    ├── isolated               Isolated            kernels replayed alone, or None
    ├── oracle                 Oracle              who is nearer to float64 references, or None
    ├── rollout                Rollout             importance ratios, or None without logprobs
    └── closure, attribution, bisection   from a bisection, or None

``as_dict`` gives the JSON of schema 1 (keys are never renamed, only added); ``from_dict`` is its inverse.
Numbers that JSON cannot hold (nan, inf) are written as the strings ``"nan"``, ``"inf"`` and ``"-inf"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tracereplay.bisection import Bisection
from tracereplay.errors import UsageError
from tracereplay.inside import Inside
from tracereplay.isolated import Isolated
from tracereplay.jsondata import one_of, optional, plain, real
from tracereplay.measures import CLASSES, ErrorClass, Metrics, Tolerance, Worst
from tracereplay.oracle import Oracle
from tracereplay.rollout import Rollout

__all__ = [
    "CLASSES",
    "SCHEMA",
    "Attribution",
    "Cause",
    "Closure",
    "Coverage",
    "Divergence",
    "EdgeFinding",
    "Effect",
    "ErrorClass",
    "Metrics",
    "Mode",
    "NotCompared",
    "OperatorFinding",
    "Outcome",
    "RoutingFinding",
    "SettingDifference",
    "Source",
    "TokenDivergence",
    "TokenFinding",
    "Tolerance",
    "Verdict",
    "Worst",
]

SCHEMA = 1

Outcome: TypeAlias = Literal["match", "diverged", "inconclusive"]
Mode: TypeAlias = Literal["injected", "rerun", "isolated", "compare"]
Cause: TypeAlias = Literal["operator", "edge", "rounding", "setting", "structure", "unobserved"]
Effect: TypeAlias = Literal["numeric", "semantic", "none", "unknown"]

_EXIT = {"match": 0, "diverged": 1, "inconclusive": 3}


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

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "site": self.site, "operator": self.operator, "kernel": self.kernel,
            "class": self.error_class, "request": self.request, "sequence": self.sequence,
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
        )


@dataclass(frozen=True, slots=True)
class OperatorFinding:
    """What an operator does differently, over all its calls; ``metrics`` are those of its worst output.

    ``passing_tolerance`` is as in `Divergence`, of that output; None where nothing was compared.
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

    def as_dict(self) -> dict[str, Any]:
        return {
            "site": self.site, "operator": self.operator, "class": self.error_class, "calls": self.calls,
            "rows": self.rows, "metrics": self.metrics.as_dict(), "output": self.output,
            "tolerance": None if self.tolerance is None else self.tolerance.as_dict(), "reason": self.reason,
            "passing_tolerance": None if self.passing_tolerance is None else self.passing_tolerance.as_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OperatorFinding:
        return cls(
            data["site"], data["operator"], data["class"], data["calls"], data["rows"],
            Metrics.from_dict(data["metrics"]), data.get("output", 0), _tolerance(data), data.get("reason"),
            _tolerance(data, "passing_tolerance"),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EdgeFinding:
    """How what arrives at an operator's input differs, over all its calls; see `OperatorFinding`."""

    site: str
    input: int
    error_class: ErrorClass
    rows: int
    metrics: Metrics
    operator: str = ""
    tolerance: Tolerance | None = None
    reason: str | None = None
    passing_tolerance: Tolerance | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "site": self.site, "input": self.input, "class": self.error_class, "rows": self.rows,
            "metrics": self.metrics.as_dict(), "operator": self.operator,
            "tolerance": None if self.tolerance is None else self.tolerance.as_dict(), "reason": self.reason,
            "passing_tolerance": None if self.passing_tolerance is None else self.passing_tolerance.as_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EdgeFinding:
        return cls(
            data["site"], data["input"], data["class"], data["rows"], Metrics.from_dict(data["metrics"]),
            data.get("operator", ""), _tolerance(data), data.get("reason"), _tolerance(data, "passing_tolerance"),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenDivergence:
    """The first greedy token that the candidate chose otherwise; ``position`` counts from the prompt's begin."""

    request: int
    position: int
    golden: int
    candidate: int
    sequence: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "request": self.request, "position": self.position, "golden": self.golden,
            "candidate": self.candidate, "sequence": self.sequence,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenDivergence:
        return cls(data["request"], data["position"], data["golden"], data["candidate"], data.get("sequence", 0))


@dataclass(frozen=True, slots=True)
class TokenFinding:
    """Tokens and logprobs of the uninjected pass.

    Args:
        compared: tokens compared.
        first_divergence: None where every greedy choice is the same.
        logprob_max, logprob_mean: absolute difference of golden tokens' logprobs, in nats; None if none.
        logprobs: how many logprobs were compared.
        differing: greedy tokens that differ.
        forced: whether golden tokens were forced, so that every position stands for itself.
    """

    compared: int = 0
    first_divergence: TokenDivergence | None = None
    logprob_max: float | None = None
    logprob_mean: float | None = None
    logprobs: int = 0
    differing: int = 0
    forced: bool = True

    def as_dict(self) -> dict[str, Any]:
        first = self.first_divergence
        return {
            "compared": self.compared,
            "first_divergence": None if first is None else first.as_dict(),
            "logprob_abs_diff": {"max": plain(self.logprob_max), "mean": plain(self.logprob_mean)},
            "logprobs": self.logprobs,
            "differing": self.differing,
            "forced": self.forced,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenFinding:
        logprob = data["logprob_abs_diff"]
        return cls(
            data["compared"], optional(TokenDivergence.from_dict, data["first_divergence"]),
            real(logprob["max"]), real(logprob["mean"]), data.get("logprobs", 0), data.get("differing", 0),
            data.get("forced", True),
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
    """

    golden_calls: int = 0
    compared_calls: int = 0
    not_compared: tuple[NotCompared, ...] = ()
    excused_calls: int = 0

    @property
    def share(self) -> float:
        """Compared calls over those that could be, 0 to 1; 0 if there is nothing to compare."""
        due = self.golden_calls - self.excused_calls
        return self.compared_calls / due if due > 0 else float(self.golden_calls > 0)

    def as_dict(self) -> dict[str, Any]:
        return {
            "golden_calls": self.golden_calls, "compared_calls": self.compared_calls,
            "not_compared": [n.as_dict() for n in self.not_compared], "excused_calls": self.excused_calls,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Coverage:
        rest = tuple(NotCompared.from_dict(n) for n in data["not_compared"])
        return cls(data["golden_calls"], data["compared_calls"], rest, data.get("excused_calls", 0))


@dataclass(frozen=True, slots=True)
class Closure:
    """Whether the golden logits came back bit for bit with every isolated error cancelled.

    Args:
        held: whether they did.
        first_broken: where it breaks first, in words.
        rows: rows of logits that came back.
        unstable: sites whose injected results do not repeat; closure is claimed but for them.
        flipped: where it is broken, routers that send rows to other experts than golden's.
        same_batches: whether the injected pass and this one composed their batches alike.
    """

    held: bool
    first_broken: str | None = None
    rows: int = 0
    unstable: tuple[str, ...] = ()
    flipped: tuple[str, ...] = ()
    same_batches: bool = True

    def as_dict(self) -> dict[str, Any]:
        return {
            "held": self.held, "first_broken": self.first_broken, "rows": self.rows,
            "unstable": list(self.unstable), "flipped": list(self.flipped),
            "same_batches": self.same_batches,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Closure:
        return cls(
            data["held"], data["first_broken"], data.get("rows", 0), tuple(data.get("unstable", ())),
            tuple(data.get("flipped", ())), data.get("same_batches", True),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attribution:
    """How much of the difference cancelling ``operators`` removes: 1 is all, negative is worse than nothing.

    Args:
        operators: what was cancelled: operator classes, sites, edges, or settings by name.
        explains: ``1 - m(cancelled) / m(nothing cancelled)``, m the mean squared logprob difference.
        interval: 95 %, by resampling positions.
        role: ``all``, ``class``, ``classes`` (some together), ``sites``, ``minimal``, ``complement`` or
            ``settings``.
        restores: whether tokens and logprobs are then within the criterion.
        tokens_differ: greedy tokens that still differ.
        logprob_max: largest logprob difference that is left, in nats.
    """

    operators: tuple[str, ...]
    explains: float
    interval: tuple[float, float]
    measure: str = "logprob_sq_diff.mean"
    role: str = "class"
    restores: bool = False
    tokens_differ: int = 0
    logprob_max: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "operators": list(self.operators), "explains": plain(self.explains),
            "interval": [plain(v) for v in self.interval], "measure": self.measure, "role": self.role,
            "restores": self.restores, "tokens_differ": self.tokens_differ,
            "logprob_max": plain(self.logprob_max),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Attribution:
        low, high = data["interval"]
        return cls(
            tuple(data["operators"]), float(data["explains"]), (float(low), float(high)), data["measure"],
            data.get("role", "class"), data.get("restores", False), data.get("tokens_differ", 0),
            float(data.get("logprob_max", 0.0)),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a comparison, with its evidence.

    Args:
        first_visible: injected mode only: where the rerun first leaves the tolerance. It shows where the
            difference surfaces, not what is to blame.
        notes: what a reader should know besides: schedules that differ, rows computed twice, gaps.
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
    def exit_code(self) -> int:
        """What the command line ends with: match 0, diverged 1, inconclusive 3."""
        return _EXIT[self.verdict]

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
        """The inverse of `as_dict`; unknown keys are passed over.

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


def _tolerance(data: Mapping[str, Any], key: str = "tolerance") -> Tolerance | None:
    return optional(Tolerance.from_dict, data.get(key))
