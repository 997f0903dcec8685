"""The values that a trace may ask for: the lists of gate.toml, and the meaning of their kinds."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from tracereplay.sampling import SAMPLING

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["NESTED", "sampling_refusal", "setting_refusal", "variable_refusal"]

NESTED = ("compilation_config", "hf_overrides", "speculative_config")  # of these a trace may set some fields
MOST = 4096  # members of a list
LARGEST = 1 << 40
LONGEST = 1 << 16  # characters of a grammar
_WORD = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)
_OP = re.compile(r"[+-]?[a-z][a-z0-9_]{0,63}", re.ASCII)
_REFERENCE = re.compile(r'\$(ref|dynamicRef)[\\"]+\s*:\s*[\\"]+(?![\\"#])')  # of a schema, elsewhere
_DIGITS = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_CORES = re.compile(r"[0-9|,-]{1,4096}|auto|all|nobind", re.ASCII)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _integer(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _short(value: Any, member: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) <= MOST and all(map(member, value))


def _text(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _biases(value: Any) -> bool:
    """JSON has text for keys."""
    return isinstance(value, dict) and len(value) <= MOST and all(
        _DIGITS.fullmatch(str(token)) and _number(bias) for token, bias in value.items()
    )  # fmt: skip


def _grammar(value: Any) -> bool:
    """A schema is compiled by the engine: a stranger's is bounded, and refers to nothing elsewhere."""
    fits, _ = SAMPLING["structured_outputs"]
    if not fits(value):
        return False
    text = json.dumps(value)
    return len(text) <= LONGEST and _REFERENCE.search(text) is None


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "flag": (lambda value: type(value) is bool, "true or false"),
    "whole": (_whole, f"a whole number up to {LARGEST}"),
    "integer": (_integer, "a whole number"),
    "number": (_number, "a finite number"),
    "wholes": (lambda value: _short(value, _whole), f"a list of at most {MOST} whole numbers"),
    "texts": (lambda value: _short(value, lambda x: isinstance(x, str)), f"a list of at most {MOST} texts"),
    "adapter": (SAMPLING["lora"][0], "an adapter's name, path, digest and rank"),
    "grammar": (_grammar, f"one grammar of at most {LONGEST} characters that refers to no other document"),
    "biases": (_biases, "numbers by token id"),
    "word": (_text(_WORD), "a name in capitals"),
    "ops": (lambda value: _short(value, _text(_OP)), "a list of operator names, each prefixed with + or -"),
    "level": (lambda value: _whole(value) or _text(_WORD)(value), "a whole number or a name in capitals"),
    "digits": (_text(_DIGITS), "the text of a whole number"),
    "cores": (_text(_CORES), "a list of cores"),
}


@cache
def _lists() -> Mapping[str, Any]:
    found: Mapping[str, Any] = tomllib.loads((files(__package__) / "gate.toml").read_text(encoding="utf-8"))
    return found


def setting_refusal(name: str, value: Any) -> str | None:
    """Why an engine argument of a trace is not applied, as a clause that follows its name; None if it may be."""
    if name in NESTED and isinstance(value, dict):
        found = [f"{key} {why}" for key, part in value.items() if (why := _refusal(name, key, part))]
        return f"has fields that a trace may not set: {'; '.join(found)}" if found else None
    return _refusal("settings", name, value)


def variable_refusal(name: str, value: Any) -> str | None:
    """The same of an environment variable."""
    return _refusal("environment", name, value)


def sampling_refusal(name: str, value: Any) -> str | None:
    """The same of a sampling parameter."""
    return _refusal("sampling", name, value)


def _refusal(table: str, name: str, value: Any) -> str | None:
    rule = _lists()[table].get(name)
    if rule is None:
        known = _lists()["refused"].get(name) if table == "settings" else None
        return known or "is not among those known to be plain numbers or choices"
    if value is None and table != "environment":
        return None
    kind = rule[0]
    if isinstance(kind, list):
        return None if isinstance(value, str) and value in kind else f"may only be one of {', '.join(kind)}"
    fits, words = _KINDS[kind]
    return None if fits(value) else f"may only be {words}"
