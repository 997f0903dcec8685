"""What may differ, and by how much: dtype defaults, and the policy file that overrides them.

The allowance of an element is ``eps(dtype) * (a * |golden| + b * trimmed RMS of its row)``. ``a`` is for
roundings of the value itself, ``b`` for those of what it was summed from. TOLERANCES.md has the measurements
behind the defaults.

A policy file is TOML; of its rules the first that fits a tensor decides, and what fits none keeps the default::

    [tokens]
    differing = 0          # greedy tokens that may differ
    [logprobs]
    max_abs = 0.05         # nats, for the golden token
    [bias]
    max_ulp = 0.1          # mean lean of a tensor along the axis, units in the last place
    sign_max_ulp = 1.25    # and along the values' signs; 0.1 lets no truncation pass
    [coverage]
    min = 0.9              # share of golden's calls that must have been compared
    [[rule]]
    site = "model.layers.*.mlp.*"   # glob; also operator = "RMSNorm", dtype = "bfloat16", kind = "edge"
    a = 2.0
    b = 6.0                # or: ignore = true
    because = "fused kernel of 0.9, checked by hand"
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from tracereplay.comparator.metrics import BIAS_ULP, SIGN_ULP
from tracereplay.errors import UsageError
from tracereplay.measures import ErrorClass, Metrics, Tolerance

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DEFAULTS", "Policy", "Rule", "load_policy", "passing_tolerance", "tolerance_for", "unit_factors"]

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


@dataclass(frozen=True, slots=True)
class Rule:
    """A tolerance for the tensors that fit ``site``, ``operator`` and ``dtype`` (globs) and ``kind``.

    Args:
        a, b: the factors; None with ``ignore``.
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

    def fits(self, site: str, operator: str, dtype: str, kind: str) -> bool:
        """Whether the rule speaks of this tensor."""
        return (
            fnmatchcase(site, self.site)
            and fnmatchcase(operator, self.operator)
            and fnmatchcase(dtype, self.dtype)
            and self.kind in (None, kind)
        )

    def describe(self) -> str:
        """The rule in words, for the report."""
        parts = [f"{k} {v}" for k in ("site", "operator", "dtype") if (v := getattr(self, k)) != "*"]
        return f"rule for {', '.join(parts) or 'everything'}" + (f" ({self.because})" if self.because else "")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a comparison tolerates.

    Args:
        rules: the first that fits decides.
        calibration: rules measured on engines that are known to be good; they come after ``rules`` and never
            go below the defaults.
        differing_tokens: greedy tokens that may differ.
        logprob_max_abs: nats by which a golden token's logprob may differ.
        bias_max_ulp: mean lean along the axis that a tensor may show.
        bias_sign_max_ulp: mean lean along the values' signs, which truncation shows too.
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
        """The same policy with every tolerance zero; rules that ignore stay."""
        return replace(self, strict=True, differing_tokens=0, logprob_max_abs=0.0)

    def rule_for(self, site: str, operator: str, dtype: str, kind: str) -> Rule | None:
        """The first rule that fits."""
        return next((r for r in self.rules if r.fits(site, operator, dtype, kind)), None)


def tolerance_for(policy: Policy, site: str, operator: str, dtype: str, kind: str) -> Tolerance | None:
    """The tolerance of a tensor of a float ``dtype``, or None where a rule says to ignore it."""
    rule = policy.rule_for(site, operator, dtype, kind)
    if rule is not None and rule.ignore:
        return None
    if policy.strict:
        return Tolerance(0.0, 0.0, dtype, "strict")
    a, b = DEFAULTS.get(dtype, (0.0, 0.0))
    if rule is not None:
        return Tolerance(_or(rule.a, a), _or(rule.b, b), dtype, rule.describe())
    measured = next((r for r in policy.calibration if r.fits(site, operator, dtype, kind)), None)
    if measured is not None:
        return Tolerance(max(a, _or(measured.a, a)), max(b, _or(measured.b, b)), dtype, "calibration")
    return Tolerance(a, b, dtype)


def unit_factors(tolerance: Tolerance) -> tuple[float, float]:
    """The factors in which errors are measured: the tolerance's own, or the defaults where it is zero."""
    if tolerance.a or tolerance.b:
        return tolerance.a, tolerance.b
    return DEFAULTS.get(tolerance.dtype, (1.0, 0.0))


def passing_tolerance(tolerance: Tolerance, error_class: ErrorClass, metrics: Metrics) -> Tolerance:
    """The smallest multiple of a tolerance, never below itself, that would have passed what was measured.

    The factors are infinite where none would: for a NaN, for an integer, or for a lean.
    """
    a, b = unit_factors(tolerance)
    factor = float("inf") if error_class in ("nonfinite", "biased") else metrics.allowance_ratio
    return Tolerance(a * factor if a else 0.0, b * factor if b else 0.0, tolerance.dtype, "passing")


def passing_bias(error_class: ErrorClass, metrics: Metrics) -> float | None:
    """The limit on leans, in ulp, that would have passed what leans; None for what does not."""
    return abs(metrics.bias_ulp) if error_class == "biased" else None


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


# Reading a policy file.

_NUMBER = (int, float)
_TABLES: Mapping[str, Mapping[str, Any]] = {
    "tokens": {"differing": int},
    "logprobs": {"max_abs": _NUMBER},
    "bias": {"max_ulp": _NUMBER, "sign_max_ulp": _NUMBER},
    "coverage": {"min": _NUMBER},
}
_RULE: Mapping[str, Any] = {
    "site": str, "operator": str, "dtype": str, "kind": str, "a": _NUMBER, "b": _NUMBER, "ignore": bool,
    "because": str,
}  # fmt: skip


def load_policy(path: Path) -> Policy:
    """The policy in a TOML file.

    Raises:
        UsageError: the file cannot be read, or holds an unknown key or a wrong value; its line is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The policy file {path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The policy file {path} is not TOML: {error}.") from error
    return _policy(document, _Where(path, text))


@dataclass(frozen=True)
class _Where:
    """Finds the line of a key, since a TOML parser does not tell."""

    path: Path
    text: str

    def __call__(self, key: str, table: str | None = None, nth: int = 0) -> str:
        lines = self.text.splitlines()
        start = 0
        if table is not None:
            header = re.compile(rf"^\s*\[+\s*{re.escape(table)}\s*\]+")
            heads = [i for i, line in enumerate(lines) if header.match(line)]
            start = heads[nth] if nth < len(heads) else 0
        wanted = re.compile(rf"""^\s*\[*\s*["']?{re.escape(key)}["']?\s*[=\].]""")
        number = next((i for i in range(start, len(lines)) if wanted.match(lines[i])), start)
        return f"line {number + 1} of {self.path}"


def _policy(document: Mapping[str, Any], where: _Where) -> Policy:
    for key in document:
        if key not in (*_TABLES, "rule"):
            raise UsageError(f"The key {key!r} in {where(key)} is unknown; known are {[*_TABLES, 'rule']}.")
    found = {name: _checked(document.get(name, {}), known, where, name) for name, known in _TABLES.items()}
    rules = document.get("rule", [])
    if not isinstance(rules, list):
        raise UsageError(f"A rule in {where('rule')} must be written [[rule]], in double brackets.")
    base = Policy()
    return Policy(
        rules=tuple(_rule(data, where, i) for i, data in enumerate(rules)),
        differing_tokens=found["tokens"].get("differing", base.differing_tokens),
        logprob_max_abs=float(found["logprobs"].get("max_abs", base.logprob_max_abs)),
        bias_max_ulp=float(found["bias"].get("max_ulp", base.bias_max_ulp)),
        bias_sign_max_ulp=float(found["bias"].get("sign_max_ulp", base.bias_sign_max_ulp)),
        min_coverage=float(found["coverage"].get("min", base.min_coverage)),
    )


def _rule(data: Any, where: _Where, nth: int) -> Rule:
    values = _checked(data, _RULE, where, "rule", nth)
    line = where("rule", "rule", nth)
    if values.get("kind") not in (None, "operator", "edge"):
        raise UsageError(f"The rule at {line} has the kind {values['kind']!r}; it must be operator or edge.")
    if values.get("ignore") is not True and not {"a", "b"} <= set(values):
        raise UsageError(f"The rule at {line} must give a and b together, or ignore = true.")
    return Rule(**values)


def _checked(data: Any, known: Mapping[str, Any], where: _Where, table: str, nth: int = 0) -> dict[str, Any]:
    """The table's values, each of its type; numbers are not negative."""
    if not isinstance(data, dict):
        raise UsageError(f"{table!r} in {where(table)} must be a table, [{table}].")
    for key, value in data.items():
        line = where(key, table, nth)
        if key not in known:
            raise UsageError(f"The key {key!r} in {line} is unknown; {table} knows {sorted(known)}.")
        kind = known[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"The value of {key!r} in {line} is {value!r}, which is not of the right type.")
        if isinstance(value, _NUMBER) and not 0 <= value < float("inf"):
            raise UsageError(f"The value of {key!r} in {line} is {value!r}; it must be a number of at least 0.")
    return dict(data)
