"""Traces summarized for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracereplay.report.words import number
from tracereplay.trace import Trace

__all__ = ["observer_words", "size_words", "summary", "trigger_words"]


def summary(trace: Trace) -> str:
    """A trace in one line."""
    passes = [trace.outline(name) for name in trace.passes]
    sites = {site for name in trace.passes for site in trace.sites(name, trace.ranks(name)[0])}
    steps, tokens = sum(one.steps for one in passes), sum(one.sampled for one in passes)
    words = f"{steps} steps, {tokens} tokens, {len(sites)} sites, {size_words(trace.size)}"
    return words if trace.complete else f"{words}, INCOMPLETE"


def observer_words(observer: Mapping[str, Any]) -> str:
    """What recording changed, compared with an engine without taps."""
    differ, drift = observer.get("tokens_differ"), observer.get("logprob_abs_diff")
    words = f"the tokens of {differ} of {observer.get('sequences')} sequences"
    return words if drift is None else f"{words}, and logprobs by at most {number(drift['max'])}"


def trigger_words(trigger: Mapping[str, Any]) -> str:
    """What set a flight recorder off."""
    where = [
        f"{name} {trigger[name]}" for name in ("request", "position", "step") if trigger.get(name) is not None
    ]
    said = ", ".join(filter(None, (trigger.get("detail"), " ".join(where))))
    suppressed = sum(n for n in (trigger.get("suppressed") or {}).values() if type(n) is int)
    more = f"; before it {suppressed} more made no trace" if suppressed else ""
    return f"{trigger.get('kind')}: {said}, at {trigger.get('time')}{more}"


def size_words(size: float) -> str:
    """A size in a suitable unit."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
