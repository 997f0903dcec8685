"""What a bias means, in sentences: how it looks, and how operators like this one compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tracereplay.comparator.numbers.results import Finding
from tracereplay.verdict.measures import Measure, Siblings

__all__ = ["who_truncates", "why_biased"]

_MEASURED: Mapping[Measure, tuple[str, Callable[[float], str]]] = {
    "bias_ulp": ("bias", lambda value: f"{value:+.2f} ulp"),
    "differing": ("share of elements that differ", lambda value: f"{value:.1%}"),
    "relative_l2": ("relative L2", lambda value: f"{value:.2f} eps"),
}


def why_biased(first: Finding, findings: Sequence[Finding]) -> str:
    """Sentences about an operator that is biased, each beginning with a space.

    Args:
        first: the operator's.
        findings: of the whole comparison.
    """
    kinds = dict.fromkeys(f.operator for f in findings if f.error_class == "biased" and f.operator)
    bias = f" Its bias is {first.metrics.bias_ulp:+.2f} ulp."
    siblings = first.metrics.siblings
    means = "" if siblings is None else _apart(siblings) if siblings.apart else _signature(siblings)
    return f"{bias}{means} Biased operators: {', '.join(kinds)}."


def _apart(siblings: Siblings) -> str:
    alike = "operators of the same class and configuration, called alike"
    if siblings.measure is None or siblings.value is None or siblings.median is None:
        return f" It seems to truncate, and one of its siblings ({alike}) does not at all."
    name, words = _MEASURED[siblings.measure]
    own = "" if siblings.measure == "bias_ulp" else f" of {words(siblings.value)}"
    return (
        f" It stands apart from its siblings ({alike}; there are {siblings.count - 1}) by its {name}{own}: the "
        f"median of theirs is {words(siblings.median)}, {siblings.score:.1f} standard deviations away."
    )


def _signature(siblings: Siblings) -> str:
    if siblings.signature == "factor":
        return " It grows with the mantissa, as a wrong factor's does; that of a cast that truncates does not."
    if siblings.signature == "truncation":
        return " It does not grow with the mantissa, as a wrong factor's does; but casts that truncate cause less."
    return " It is along the axis, whatever the values' signs, as a floor's or an added constant's is."


def who_truncates(within: Sequence[Finding]) -> str:
    """Which side seems to truncate, by the signature of biases within tolerance; its results are smaller."""
    words = ""
    for side, sign in (("Golden", 1), ("The candidate", -1)):
        leaning = [f for f in within if sign * f.metrics.bias_ulp > 0 and _truncates(f)]
        if leaning:
            kinds = ", ".join(dict.fromkeys(f.operator for f in leaning))
            words += f" {side} seems to truncate where the other rounds to nearest: {kinds}."
    return words


def _truncates(finding: Finding) -> bool:
    siblings = finding.metrics.siblings
    return siblings is not None and siblings.signature == "truncation"
