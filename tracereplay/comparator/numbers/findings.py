"""From findings to the verdict's values, as reports read them."""

from __future__ import annotations

from collections.abc import Sequence

from tracereplay.comparator.numbers.results import Finding
from tracereplay.comparator.numbers.tolerance import passing_bias, passing_tolerance
from tracereplay.sitemap import Pair
from tracereplay.trace import Trace
from tracereplay.verdict import Divergence, EdgeFinding, OperatorFinding, Pairing, Source
from tracereplay.verdict.measures import Tolerance, severity

__all__ = ["divergence_of", "edge_of", "operators_of", "source_of"]


def source_of(trace: Trace, digest: str) -> Source:
    return Source(dict(trace.run.engine), str(trace.path), digest)


def divergence_of(finding: Finding) -> Divergence:
    event = finding.onset
    assert event is not None
    worst = event.metrics.worst
    assert worst is not None
    return Divergence(
        kind="edge" if finding.kind == "edge" else "operator",
        site=finding.key.site,
        operator=finding.operator,
        error_class=finding.error_class,
        request=worst.request,
        sequence=worst.sequence,
        position=worst.position,
        step=event.step,
        index=finding.key.index,
        metrics=event.metrics,
        tolerance=finding.tolerance,
        passing_tolerance=passing_tolerance(finding.tolerance, finding.error_class, finding.metrics),
        passing_bias=passing_bias(finding.error_class, finding.metrics),
    )


def operators_of(findings: Sequence[Finding]) -> tuple[OperatorFinding, ...]:
    """One for each site, with its worst output; in golden execution order."""
    sites: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.kind == "operator":
            sites.setdefault(finding.key.site, []).append(finding)
    return tuple(map(_operator, sites.values()))


def _operator(found: Sequence[Finding]) -> OperatorFinding:
    worst = max(found, key=lambda f: severity(f.error_class, f.metrics.allowance_ratio))
    return OperatorFinding(
        worst.key.site, worst.operator, worst.error_class, max(f.calls for f in found),
        max(f.rows for f in found), worst.metrics, worst.key.index, worst.tolerance, worst.reason,
        _passing(worst), _pairing(worst.pair),
    )  # fmt: skip


def edge_of(finding: Finding) -> EdgeFinding:
    return EdgeFinding(
        finding.key.site, finding.key.index, finding.error_class, finding.rows, finding.metrics,
        finding.operator, finding.tolerance, finding.reason, _passing(finding), _pairing(finding.pair),
        finding.inputs,
    )  # fmt: skip


def _pairing(pair: Pair | None) -> Pairing | None:
    if pair is None or pair.relation is None:
        return None
    return Pairing(pair.golden_site, pair.relation, pair.paired_by)


def _passing(finding: Finding) -> Tolerance | None:
    """What would have passed; None if nothing was compared."""
    return passing_tolerance(finding.tolerance, finding.error_class, finding.metrics) if finding.rows else None
