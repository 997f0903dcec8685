"""Policies as TOML files; errors name the line.

The first rule that fits a tensor applies, yours before the calibrated ones. Everything is optional::

    [tokens]
    differing = 0          # greedy tokens that may differ
    [logprobs]
    max_abs = 0.05         # nats, for the golden token
    [bias]
    max_ulp = 0.1          # mean lean of a tensor, units in the last place
    sign_max_ulp = 1.25    # the same along the values' signs where it is a rounding convention, as truncation is
    [coverage]
    min = 0.9              # share of golden's calls that must have been compared
    [[rule]]               # yours: may be below the defaults
    site = "model.layers.*.mlp.*"   # glob; also operator = "RMSNorm", dtype = "bfloat16", kind = "edge"
    a = 2.0
    b = 6.0                # or: ignore = true
    max_ulp = 0.5          # the bias that these may have
    peak = 2.0             # how many times the allowance a single element may be off, at least 1
    because = "fused kernel of 0.9, checked by hand"
    [[calibrated]]         # `tracereplay calibrate` writes these; never below the defaults, and after every rule
    operator = "RowParallelLinear"
    dtype = "bfloat16"
    a = 4.1
    b = 4.1
    [calibration]          # what they were measured on; for people, and without effect
    golden = "golden.trace"
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from tracereplay.comparator.numbers.tolerance import Policy, Rule
from tracereplay.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["is_calibrated", "load_policy", "policy_text"]

_NUMBER = (int, float)
_KINDS: Mapping[Any, str] = {
    str: "text, in quotes", int: "a whole number", bool: "true or false", list: "a list", _NUMBER: "a number",
}  # fmt: skip
_TABLES: Mapping[str, Mapping[str, Any]] = {
    "tokens": {"differing": int},
    "logprobs": {"max_abs": _NUMBER},
    "bias": {"max_ulp": _NUMBER, "sign_max_ulp": _NUMBER},
    "coverage": {"min": _NUMBER},
    "calibration": {
        "tracereplay": str, "date": str, "golden": str, "digest": str, "engine": str, "runs": list,
        "skipped": list, "noise": list, "margin": str,
    },
}  # fmt: skip
_RULE: Mapping[str, Any] = {
    "site": str, "operator": str, "dtype": str, "kind": str, "a": _NUMBER, "b": _NUMBER, "ignore": bool,
    "because": str, "max_ulp": _NUMBER, "peak": _NUMBER,
}  # fmt: skip
_CALIBRATED = {key: kind for key, kind in _RULE.items() if key not in ("ignore", "max_ulp", "peak")}
_LISTS = {"rule": _RULE, "calibrated": _CALIBRATED}


def load_policy(path: str | PathLike[str]) -> Policy:
    """The policy in a TOML file.

    >>> _ = Path("policy.toml").write_text("logprobs.max_abs = 0.1")
    >>> tracereplay.load_policy("policy.toml").logprob_max_abs
    0.1

    Raises:
        UsageError: the file cannot be read, or has an unknown key or a wrong value; the message names the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = tomllib.loads(text)
    except FileNotFoundError as error:
        raise UsageError(f"There is no policy file {path}; give the path of one, or none.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The policy file {path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The policy file {path} is not TOML: {error}.") from error
    return _policy(document, _Where(path, text))


def is_calibrated(path: Path) -> bool:
    """Whether ``calibrate`` wrote the file, and nothing was added by hand."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        return False
    about = found.get("calibration")
    ours = {"calibration", "calibrated", "logprobs"}
    return isinstance(about, dict) and "tracereplay" in about and set(found) <= ours


@dataclass(frozen=True)
class _Where:
    """Finds the line of a key, since a TOML parser does not tell."""

    path: Path
    text: str

    def __call__(self, key: str, table: str | None = None, nth: int = 0) -> str:
        lines = self.text.split("\n")
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
        if key not in (*_TABLES, *_LISTS):
            raise UsageError(f"The key {key!r} in {where(key)} is unknown; known are {[*_TABLES, *_LISTS]}.")
    found = {name: _checked(document.get(name, {}), known, where, name) for name, known in _TABLES.items()}
    base = Policy()
    return Policy(
        rules=_rules(document, "rule", where),
        calibration=_rules(document, "calibrated", where),
        differing_tokens=found["tokens"].get("differing", base.differing_tokens),
        logprob_max_abs=float(found["logprobs"].get("max_abs", base.logprob_max_abs)),
        bias_max_ulp=float(found["bias"].get("max_ulp", base.bias_max_ulp)),
        bias_sign_max_ulp=float(found["bias"].get("sign_max_ulp", base.bias_sign_max_ulp)),
        min_coverage=float(found["coverage"].get("min", base.min_coverage)),
    )


def _rules(document: Mapping[str, Any], table: str, where: _Where) -> tuple[Rule, ...]:
    found = document.get(table, [])
    if not isinstance(found, list):
        raise UsageError(f"A rule in {where(table)} must be written [[{table}]], in double brackets.")
    return tuple(_rule(data, where, table, i) for i, data in enumerate(found))


def _rule(data: Any, where: _Where, table: str, nth: int) -> Rule:
    values = _checked(data, _LISTS[table], where, table, nth)
    line = where(table, table, nth)
    if values.get("kind") not in (None, "operator", "edge"):
        raise UsageError(f"The rule at {line} has the kind {values['kind']!r}; it must be operator or edge.")
    given = {"a", "b"} & set(values)
    alone = {"max_ulp", "peak"} & set(values)
    if values.get("ignore") is not True and len(given) != 2 and (given or not alone):
        others = ", or peak, or max_ulp, or ignore = true" if table == "rule" else ""
        raise UsageError(f"The rule at {line} must give a and b together{others}.")
    if values.get("peak", 1) < 1:
        line, given_peak = where("peak", table, nth), values["peak"]
        raise UsageError(f"The value of 'peak' in {line} is {given_peak!r}; it must be a number of at least 1.")
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
            raise UsageError(f"The value of {key!r} in {line} is {value!r}; it must be {_KINDS[kind]}.")
        if isinstance(value, _NUMBER) and not 0 <= value < float("inf"):
            raise UsageError(f"The value of {key!r} in {line} is {value!r}; it must be a number of at least 0.")
    return dict(data)


# Writing one.


def policy_text(policy: Policy, calibration: Mapping[str, str | Sequence[str]]) -> str:
    """A policy file: what in ``policy`` is not the default, and ``calibration`` as its table of that name.

    `load_policy` gives an equal policy back.
    """
    blocks = [_block("[calibration]", calibration), *_limits(policy)]
    blocks += [_block("[[rule]]", _rule_values(rule)) for rule in policy.rules]
    blocks += [_block("[[calibrated]]", _rule_values(rule)) for rule in policy.calibration]
    return "\n".join(blocks)


def _limits(policy: Policy) -> list[str]:
    base = Policy()
    found: dict[str, dict[str, float]] = {}
    for table, key, value, default in (
        ("tokens", "differing", policy.differing_tokens, base.differing_tokens),
        ("logprobs", "max_abs", policy.logprob_max_abs, base.logprob_max_abs),
        ("bias", "max_ulp", policy.bias_max_ulp, base.bias_max_ulp),
        ("bias", "sign_max_ulp", policy.bias_sign_max_ulp, base.bias_sign_max_ulp),
        ("coverage", "min", policy.min_coverage, base.min_coverage),
    ):
        if value != default:
            found.setdefault(table, {})[key] = value
    return [_block(f"[{table}]", values) for table, values in found.items()]


def _rule_values(rule: Rule) -> Mapping[str, Any]:
    base = Rule()
    return {key: value for key in _RULE if (value := getattr(rule, key)) != getattr(base, key)}


def _block(header: str, values: Mapping[str, Any]) -> str:
    lines = [f"{key} = {_literal(value)}" for key, value in values.items()]
    return "\n".join([header, *lines]) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + "".join(f"\n    {_literal(item)}," for item in value) + ("\n]" if value else "]")
    # A JSON string is a TOML string but for the one control character that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
