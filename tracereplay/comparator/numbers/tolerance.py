"""What may differ, and by how much: dtype defaults, and the policy that overrides them.

The allowance of an element is ``eps(dtype) * (a * |golden| + b * trimmed RMS of its row)``. ``a`` is for
roundings of the value itself, ``b`` for those of the terms it was summed from. Single elements of experts may be
off by more (`PEAKS`). TOLERANCES.md has the measurements behind the defaults. The first of a policy's rules that
fits a tensor applies, else the first calibrated one, else the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from tracereplay.comparator.numbers.dtypes import is_float
from tracereplay.comparator.numbers.tally import BIAS_ULP, SIGN_ULP, Tally
from tracereplay.verdict.measures import ErrorClass, Metrics, Tolerance, rounded_up

__all__ = [
    "DEFAULTS", "PEAKS", "Policy", "Rule", "allow_convention", "passing_bias", "passing_tolerance", "tally_for",
    "tolerance_for", "unit_factors",
]  # fmt: skip

# dtype -> (a, b)
DEFAULTS: Mapping[str, tuple[float, float]] = {
    "float64": (16.0, 256.0),
    "float32": (16.0, 256.0),
    "float16": (4.0, 4.0),
    "bfloat16": (3.0, 3.0),
    "float8_e4m3fn": (2.0, 2.0),
    "float8_e4m3fnuz": (2.0, 2.0),
    "float8_e5m2": (2.0, 2.0),
    "float8_e5m2fnuz": (2.0, 2.0),
    "float8_e8m0fnu": (2.0, 0.0),
}

# (role, dtype) -> how many times its allowance a single element of an output may be off. Experts are a whole
# network, which rounds five times in a row: TOLERANCES.md has the model.
PEAKS: Mapping[tuple[str, str], float] = {("experts", "bfloat16"): 1.5}


@dataclass(frozen=True, slots=True)
class Rule:
    """A tolerance for the tensors that fit ``site``, ``operator`` and ``dtype`` (globs) and ``kind``.

    Args:
        a, b: the factors; None for the defaults, and with ``ignore``.
        max_ulp: mean bias that these may show; None for the policy's.
        peak: how many times its allowance a single element may be off, at least 1; None for the default (`PEAKS`).
        ignore: do not compare these.
        because: why, for the report.
    """

    site: str = "*"
    operator: str = "*"
    dtype: str = "*"
    kind: Literal["operator", "edge"] | None = None
    a: float | None = None
    b: float | None = None
    ignore: bool = False
    because: str = ""
    max_ulp: float | None = None
    peak: float | None = None

    def fits(self, site: str, operator: str, dtype: str, kind: str) -> bool:
        """Whether the rule applies to this tensor."""
        return (
            fnmatchcase(site, self.site)
            and fnmatchcase(operator, self.operator)
            and fnmatchcase(dtype, self.dtype)
            and self.kind in (None, kind)
        )

    def describe(self, what: str = "rule") -> str:
        """The rule in words, for the report."""
        parts = [f"{k} {v}" for k in ("site", "operator", "dtype") if (v := getattr(self, k)) != "*"]
        return f"{what} for {', '.join(parts) or 'everything'}" + (f" ({self.because})" if self.because else "")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a comparison tolerates.

    >>> lenient = tracereplay.Policy(differing_tokens=2)
    >>> tracereplay.compare("golden.trace", "candidate.trace", policy=lenient).matches
    True

    Args:
        rules: the first that fits applies.
        calibration: rules measured on engines known to be good; they come after ``rules`` and never
            go below the defaults.
        differing_tokens: greedy tokens that may differ.
        logprob_max_abs: nats by which a golden token's logprob may differ.
        bias_max_ulp: mean bias that a tensor may show, along the axis or along the values' signs.
        bias_sign_max_ulp: the same along the values' signs if it is a rounding convention (`leans`).
        min_coverage: share of golden's calls, 0 to 1, that must have been compared for a match.
        strict: every tolerance is zero.
    """

    rules: tuple[Rule, ...] = ()
    calibration: tuple[Rule, ...] = ()
    differing_tokens: int = 0
    logprob_max_abs: float = 0.05
    bias_max_ulp: float = BIAS_ULP
    bias_sign_max_ulp: float = SIGN_ULP
    min_coverage: float = 0.9
    strict: bool = False

    def made_strict(self) -> Policy:
        """The same policy with every tolerance zero; rules that ignore tensors remain."""
        return replace(self, strict=True, differing_tokens=0, logprob_max_abs=0.0)

    def max_lean(self, site: str, operator: str, dtype: str, kind: str) -> float:
        """The mean lean that a tensor may show where it is no rounding convention, in ulp."""
        rule = self.rule_for(site, operator, dtype, kind)
        return self.bias_max_ulp if rule is None or rule.max_ulp is None else rule.max_ulp

    def peak(self, site: str, operator: str, dtype: str, kind: str, role: str = "") -> float:
        """How many times its allowance a single element of a tensor may be off."""
        rule = None if self.strict else self.rule_for(site, operator, dtype, kind)
        default = PEAKS.get((role, dtype), 1.0) if kind == "operator" else 1.0
        return default if rule is None or rule.peak is None else rule.peak

    def rule_for(self, site: str, operator: str, dtype: str, kind: str) -> Rule | None:
        """The first rule that fits."""
        return next((r for r in self.rules if r.fits(site, operator, dtype, kind)), None)


def tolerance_for(
    policy: Policy, site: str, operator: str, dtype: str, kind: str, role: str = ""
) -> Tolerance | None:
    """The tolerance of a tensor of a float ``dtype``, or None if a rule says to ignore it.

    Its source says what single elements may be off by, where that is more (`Policy.peak`). Kernels have no role.
    """
    rule = policy.rule_for(site, operator, dtype, kind)
    if rule is not None and rule.ignore:
        return None
    if policy.strict:
        return Tolerance(0.0, 0.0, dtype, "strict")
    a, b = DEFAULTS.get(dtype, (0.0, 0.0))
    peak = policy.peak(site, operator, dtype, kind, role)
    more = "" if peak == 1 else f", single elements up to {peak:g} times as much"
    if rule is not None:
        return Tolerance(_or(rule.a, a), _or(rule.b, b), dtype, rule.describe() + more)
    measured = next((r for r in policy.calibration if r.fits(site, operator, dtype, kind)), None)
    if measured is not None:
        known = measured.describe("calibration")
        return Tolerance(max(a, _or(measured.a, a)), max(b, _or(measured.b, b)), dtype, known + more)
    return Tolerance(a, b, dtype, "default" + more)


def tally_for(
    policy: Policy, tolerance: Tolerance, site: str, operator: str, kind: str, role: str = "", *,
    conventional: bool = False,
) -> Tally:  # fmt: skip
    """An empty tally with the limits of a tensor that ``tolerance_for`` gave ``tolerance``.

    Args:
        policy, site, operator, kind, role: as for `tolerance_for`.
        tolerance: the tensor's.
        conventional: whether its lean along the values' signs counts as a rounding convention (`leans`).
    """
    limit = 0.0 if tolerance.a == tolerance.b == 0 and is_float(tolerance.dtype) else 1.0
    lean = policy.max_lean(site, operator, tolerance.dtype, kind)
    peak = policy.peak(site, operator, tolerance.dtype, kind, role)
    tally = Tally(limit, peak, lean, lean)
    if conventional:
        allow_convention(tally, policy)
    return tally


def allow_convention(tally: Tally, policy: Policy) -> None:
    """Lets a tensor lean along the values' signs by as much as a rounding convention may."""
    tally.sign_limit = max(tally.bias_limit, policy.bias_sign_max_ulp)


def unit_factors(tolerance: Tolerance) -> tuple[float, float]:
    """The factors in which errors are measured: the tolerance's own, or the defaults where it is zero."""
    if tolerance.a or tolerance.b:
        return tolerance.a, tolerance.b
    return DEFAULTS.get(tolerance.dtype, (1.0, 0.0))


def passing_tolerance(tolerance: Tolerance, error_class: ErrorClass, metrics: Metrics) -> Tolerance:
    """The smallest multiple of a tolerance that would have passed what was measured, to three digits, rounded up.

    Rounded up, so that the number that a report shows passes. The factors are infinite where none would: for a
    NaN, for an integer, or for a lean.
    """
    a, b = unit_factors(tolerance)
    factor = float("inf") if error_class in ("nonfinite", "biased") else metrics.allowance_ratio
    times_a, times_b = (rounded_up(f * factor) if f else 0.0 for f in (a, b))
    return Tolerance(times_a, times_b, tolerance.dtype, "passing")


def passing_bias(error_class: ErrorClass, metrics: Metrics) -> float | None:
    """The limit on leans, in ulp, that would have passed what leans, rounded up; None for what does not.

    What stands apart from its siblings passes where the distance from them does too.
    """
    if error_class != "biased":
        return None
    siblings = metrics.siblings
    distance = siblings.distance if siblings is not None and siblings.apart else 0.0
    return rounded_up(max(abs(metrics.bias_ulp), distance))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
