"""What can be cancelled: the operators and edges that differ on golden inputs, each with its own error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tracereplay.cancellation import Cancellation
from tracereplay.comparator.numbers.dtypes import is_float
from tracereplay.verdict import EdgeFinding, ErrorClass, OperatorFinding, Verdict
from tracereplay.verdict.measures import severity

__all__ = ["Term", "by_class", "cancellation_of", "terms_of", "worst_first"]


@dataclass(frozen=True, slots=True)
class Term:
    """An operator (all its outputs), or the edge into one of its inputs.

    Args:
        site: of the operator.
        operator: its class.
        input: of an edge; None for the operator itself.
        error_class, ratio: of its own error, and that error over its allowance.
        integer: whether the edge delivers wrong integers. They are never replaced; their effect is cancelled at
            the outputs of the operator, whose other inputs were golden.
        inputs: of an edge: those that are cancelled together, since golden has only their sum.
    """

    site: str
    operator: str
    input: int | None
    error_class: ErrorClass
    ratio: float
    integer: bool = False
    inputs: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The name in reports and in the journal."""
        return self.site if self.input is None else f"{self.site} (input {self.input})"

    @property
    def kind(self) -> str:
        """Its class: the operator's, or that of all edges into such operators."""
        return self.operator if self.input is None else f"edge into {self.operator}"


def terms_of(verdict: Verdict) -> tuple[list[Term], list[str]]:
    """All that differ on golden inputs, worst first, and names of those that cannot be cancelled.

    What could not be compared cannot be cancelled by name, nor can a result that is an integer (a sampler's
    choice). An operator that was given wrong integers counts as its edge.
    """
    every: list[tuple[OperatorFinding | EdgeFinding, int | None]] = [(o, None) for o in verdict.operators]
    every += [(e, e.input) for e in verdict.edges]
    found = [term for finding, index in every if (term := _term(finding, index)) is not None]
    misled = {term.site for term in found if term.integer}
    left = [
        finding.site
        for finding in verdict.operators
        if (finding.error_class == "incomparable" and finding.site not in misled) or _integer_result(finding)
    ]
    return worst_first(found), left


def worst_first(terms: Iterable[Term]) -> list[Term]:
    """The terms by severity."""
    return sorted(terms, key=lambda term: severity(term.error_class, term.ratio), reverse=True)


def _term(finding: OperatorFinding | EdgeFinding, index: int | None) -> Term | None:
    """What can be cancelled of a finding, if anything."""
    if finding.error_class in ("identical", "incomparable"):
        return None
    if isinstance(finding, OperatorFinding) and _integer_result(finding):
        return None
    integer = finding.tolerance is not None and not is_float(finding.tolerance.dtype)
    ratio = finding.metrics.allowance_ratio
    inputs = (finding.inputs or (finding.input,)) if isinstance(finding, EdgeFinding) else ()
    return Term(finding.site, finding.operator, index, finding.error_class, ratio, integer, inputs)


def _integer_result(finding: OperatorFinding) -> bool:
    differs = finding.error_class not in ("identical", "incomparable")
    return differs and finding.tolerance is not None and not is_float(finding.tolerance.dtype)


def by_class(terms: Iterable[Term]) -> dict[str, list[Term]]:
    """The terms of each class; classes and terms stay in order."""
    classes: dict[str, list[Term]] = {}
    for term in terms:
        classes.setdefault(term.kind, []).append(term)
    return classes


def cancellation_of(terms: Sequence[Term]) -> Cancellation:
    """What the engine is asked to cancel."""
    operators = frozenset(t.site for t in terms if t.input is None or t.integer)
    edges = frozenset((t.site, index) for t in terms if not t.integer for index in t.inputs)
    return Cancellation(operators, edges)
