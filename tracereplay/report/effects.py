"""Settings that differ, for people: those that explain what was seen, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tracereplay.comparator.judging.settings import explains
from tracereplay.comparator.judging.suspects import Suspect, Weight, ranked
from tracereplay.engines.known import family_of
from tracereplay.report.clean import clean
from tracereplay.verdict import SettingDifference, Verdict

__all__ = ["explaining", "likely", "may_change", "named_settings", "suspects", "value_words"]

_KINDS = 3  # classes of operators that are named
_VALUE = 60  # characters of a value in a sentence


def suspects(verdict: Verdict) -> list[Suspect]:
    """The settings in which the two differ, those first that can explain the most."""
    first = verdict.first_divergence
    begins = None if first is None or first.kind == "edge" else _role(verdict, first.operator)
    return ranked(verdict.settings_diff, _differing(verdict), begins=begins)


def likely(verdict: Verdict) -> list[SettingDifference]:
    """Those that can explain something, or change what is computed."""
    found = [s for s in suspects(verdict) if s.difference.effect != "none"]
    return [s.difference for s in found if s.weight <= Weight.UNKNOWN or s.difference.effect == "semantic"]


def explaining(verdict: Verdict) -> tuple[SettingDifference, ...]:
    """The settings under which what differs computes something else, if the verdict blames settings."""
    first = verdict.first_divergence
    if verdict.cause != "setting":
        return ()
    if first is None:
        roles = set(_differing(verdict).values()) - {"sampler"}
        return tuple(d for d in verdict.settings_diff if any(explains(d, role) for role in roles))
    role, edge = _role(verdict, first.operator), first.kind == "edge"
    return tuple(d for d in verdict.settings_diff if explains(d, role, first.index, edge=edge))


def named_settings(verdict: Verdict) -> str:
    """The settings to blame, with their values; empty if they are not known."""
    return "; ".join(
        f"{clean(d.name)} is {value_words(d.golden, _VALUE)} in golden, {value_words(d.candidate, _VALUE)} in the "
        "candidate"
        for d in explaining(verdict)
    )


def may_change(suspect: Suspect) -> str:
    """What a setting can change, in words."""
    weight, touches = suspect.weight, suspect.touches
    kinds = ", ".join(map(clean, touches[:_KINDS])) + (
        f" and {len(touches) - _KINDS} more" * (len(touches) > _KINDS)
    )
    if weight is Weight.NOTHING:
        return "nothing"
    if suspect.difference.effect == "unknown":
        return "something not known"
    if suspect.difference.effect == "semantic":
        return f"what is computed: {kinds}" if kinds else "what operators compute that do not differ"
    if weight is Weight.ELSEWHERE:
        return "rounding of operators that do not differ"
    return f"rounding: {kinds}" if kinds else "rounding"


def value_words(value: object, most: int) -> str:
    """A setting's value; a long one is cut in its middle."""
    if value is None:
        return "not set"
    text = clean(value if isinstance(value, str) else _json(value))
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[len(text) - half :]}"


def _json(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)


def _differing(verdict: Verdict) -> Mapping[str, str]:
    """Classes of operators that differ, worst first, with their roles."""
    differ = [o for o in verdict.operators if o.error_class not in ("identical", "incomparable")]
    ordered = sorted(differ, key=lambda o: o.metrics.allowance_ratio, reverse=True)
    return {o.operator: _role(verdict, o.operator) for o in ordered}


def _role(verdict: Verdict, operator: str) -> str:
    return family_of(verdict.golden.engine).operator(operator).role
