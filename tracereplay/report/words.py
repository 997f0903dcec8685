"""Words and numbers shared by all report forms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tracereplay.engines.known import family_of
from tracereplay.report.clean import clean
from tracereplay.verdict import Divergence, Source, TokenDivergence
from tracereplay.verdict.measures import ErrorClass, Metrics, Tolerance, Worst

__all__ = [
    "allowance", "apart", "count", "integral", "multiple", "number", "of_allowed",
    "passing", "percent", "request_named", "short_kernel", "source",
]  # fmt: skip

_PERCENT = 10  # times what is allowed from which on a share is told as a multiple


def count(many: int, thing: str) -> str:
    """``1 token``, ``2 tokens``."""
    return f"{many:,} {thing}{'' if many == 1 else 's'}"


def number(value: float | None) -> str:
    """A number in at most three significant digits."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return {"inf": "inf", "-inf": "-inf"}.get(str(value), "nan")
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share in percent; 0 % and 100 % are exact."""
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    return f"{min(max(100 * share, 0.1), 99.9):.1f}%"


def multiple(metrics: Metrics) -> str:
    """The error as a share of its allowance, or a word if it has none: ``58%``, ``130%``, ``190,000 times``."""
    ratio = metrics.allowance_ratio
    if not math.isfinite(ratio):
        return "not finite" if metrics.nonfinite else "not equal"
    if ratio < _PERCENT:
        share = 100 * ratio
        if ratio < 1:  # 0% and 100% are exact
            return f"{min(share, 99.9):.3g}%" if share > 99.5 or 0 < share < 0.5 else f"{share:.0f}%"
        return f"{share:.0f}%" if ratio == 1 or share >= 100.5 else f"{max(share, 100.1):.1f}%"
    return f"{ratio:,.0f} times" if ratio < 1e6 else f"{ratio:.1e} times"


def apart(worst: Worst) -> str:
    """The two values, golden's first, as everywhere."""
    return f"{number(worst.golden)} -> {number(worst.candidate)}"


def of_allowed(metrics: Metrics) -> str:
    """The same in a sentence: ``58% of the allowed error``."""
    words = multiple(metrics)
    if words.endswith("%"):
        return f"{words} of the allowed error"
    return f"{words} the allowed error" if words.endswith("times") else words


def integral(tolerance: Tolerance | None) -> bool:
    """Whether it is of whole numbers, such as tokens, positions or masks: they do not round, nor can an error be
    taken out."""
    return tolerance is not None and tolerance.dtype.startswith(("int", "uint", "bool"))


def request_named(first: Divergence | TokenDivergence) -> str:
    """The request's number, and its id where that is known."""
    return str(first.request) if first.request_id is None else f"{first.request} ({clean(first.request_id)})"


def short_kernel(name: str) -> str:
    """``aten.mm`` for ``aten.mm.default``."""
    return name.removesuffix(".default")


def passing(error_class: ErrorClass, tolerance: Tolerance | None, bias: float | None = None) -> str:
    """The tolerance that would have passed, or the limit on bias."""
    if error_class == "biased":
        lean = "no tolerance" if bias is None else f"max_ulp = {number(bias)}, not a larger tolerance"
        return f"{lean}: each error is within it, but they lean to one side"
    if tolerance is None or not (tolerance.a < float("inf") and tolerance.b < float("inf")):
        return "none"
    return f"a = {number(tolerance.a)}, b = {number(tolerance.b)}" if tolerance.a or tolerance.b else "none"


def allowance(tolerance: Tolerance) -> str:
    """The tolerance as a formula."""
    if tolerance.source == "strict" or not (tolerance.a or tolerance.b):
        return "none: bit for bit"
    words = f"eps({tolerance.dtype}) * ({number(tolerance.a)} |golden| + {number(tolerance.b)} RMS of its row)"
    return clean(f"{words}, {tolerance.source}")


def source(side: Source) -> str:
    """An engine in one line: name, versions, dtype, device."""
    engine = side.engine
    versions = engine.get("versions") or {}
    settings = engine.get("settings") or {}
    names = (family_of(engine).package, "torch", "transformers")
    parts: Iterable[Any] = (
        engine.get("name", "unnamed"),
        *(f"{name} {versions[name]}" for name in names if name in versions),
        settings.get("dtype"),
        engine.get("device"),
    )
    return clean(", ".join(str(part) for part in parts if part))
