"""How much runs that should agree differ, and the tolerances derived from that.

**Noise** of a tensor in one run is the multiple of its dtype's default tolerance that would have passed it: the
largest quotient of error and default allowance over all rows (`comparator.numbers.metrics`). In an injected pass
it is the operator's own, since every operator has golden inputs.

**Margin.** A later run may exceed the largest noise of the runs that were made: after n similar runs the next one
does with probability 1 / (n + 1). So the tolerance is the largest noise m plus four standard
deviations of the noise of all sites and runs, and at least 1.5 m; with fewer than eight such values, from which
no spread can be told, 2 m. TOLERANCES.md has how often a further run exceeds it, by simulation. *Why not more?*
At 1.36 times the bfloat16 default a scale that is 3 % off would pass.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tracereplay.comparator.judging.gather import gather_evidence
from tracereplay.comparator.numbers.results import Finding
from tracereplay.comparator.numbers.tolerance import DEFAULTS, Policy, Rule
from tracereplay.errors import UsageError
from tracereplay.trace import Trace
from tracereplay.verdict.measures import rounded_up

__all__ = ["MARGIN", "Earned", "Noise", "NoiseKind", "bound", "earn", "measure_noise"]

SPREAD, AT_LEAST, FEW, WITHOUT_SPREAD = 4.0, 1.5, 8, 2.0
MARGIN = (
    f"the largest noise plus {SPREAD:g} standard deviations of it, and at least {AT_LEAST:g} times the largest; "
    f"{WITHOUT_SPREAD:g} times where fewer than {FEW} values show noise"
)
MUCH_NOISIER = 2.0  # times the tolerance of the other sites


@dataclass(frozen=True, slots=True, order=True)
class NoiseKind:
    """What a rule applies to: outputs of an operator class, or its inputs as they arrive, in one dtype."""

    operator: str
    kind: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Noise:
    """How one run differs from golden.

    Args:
        sites: the noise by kind and site, as a multiple of the default tolerance; 0 if equal bit for bit.
        unfit: places that differ in a way that no tolerance allows, and how.
        logprob_max: largest difference of a golden token's logprob in the rerun, nats; None without logprobs.
        tokens, tokens_differ: greedy tokens compared, and those for which the run would have chosen differently.
        share: of golden's calls that were compared.
    """

    sites: Mapping[NoiseKind, Mapping[str, float]]
    unfit: Mapping[str, str]
    logprob_max: float | None
    tokens: int
    tokens_differ: int
    share: float

    @property
    def largest(self) -> float:
        """Of all sites."""
        return max((noise for found in self.sites.values() for noise in found.values()), default=0.0)


@dataclass(frozen=True, slots=True)
class Earned:
    """A tolerance, and the noise that it was derived from.

    Args:
        kind: of the tensors.
        site: ``*``, or the one site that is much noisier than its kind.
        noise: the largest, as a multiple of the default.
        at: the site that shows it.
        sites, runs: that differ, and that were measured.
        multiple: of the default that is tolerated; below 1 the default stays.
    """

    kind: NoiseKind
    site: str
    noise: float
    at: str
    sites: int
    runs: int
    multiple: float

    @property
    def factors(self) -> tuple[float, float]:
        """a and b, never below the dtype's defaults."""
        a, b = DEFAULTS[self.kind.dtype]
        times = max(1.0, rounded_up(self.multiple))
        return float(f"{a * times:.6g}"), float(f"{b * times:.6g}")

    @property
    def rule(self) -> Rule:
        """As a policy has it."""
        a, b = self.factors
        what = f"noise {self.noise:.3g} of the default at most"
        where = "" if self.site != "*" else f", at {self.at}, {self.sites} sites differ"
        because = f"{what}{where}, {self.runs} runs; with its margin {self.multiple:.3g}"
        kind = "operator" if self.kind.kind == "operator" else "edge"
        return Rule(self.site, self.kind.operator, self.kind.dtype, kind, a, b, because=because)  # type: ignore[arg-type]


def measure_noise(golden: Trace, candidate: Trace) -> Noise:
    """The noise of one run.

    Args:
        golden: the recording.
        candidate: a replay of it, with an injected pass.

    Raises:
        UsageError: they ran different weights, or the candidate is incomplete.
    """
    evidence = gather_evidence(golden, candidate, Policy())
    if evidence.other_weights:
        raise UsageError("It ran different weights from golden's; nothing can be compared.")
    if not candidate.complete:
        raise UsageError("Its trace is incomplete.")
    sites: dict[NoiseKind, dict[str, float]] = {}
    unfit: dict[str, str] = {}
    for finding in evidence.comparison.findings:
        if not finding.rows:
            continue
        if (why := _unfit(finding)) is not None:
            what = "output" if finding.kind == "operator" else "input"
            unfit[f"{what} {finding.key.index} of {finding.key.site}"] = why
        if finding.tolerance.dtype in DEFAULTS and math.isfinite(finding.metrics.allowance_ratio):
            of = sites.setdefault(NoiseKind(finding.operator, finding.kind, finding.tolerance.dtype), {})
            of[finding.key.site] = max(of.get(finding.key.site, 0.0), finding.metrics.allowance_ratio)
    tokens, drift = evidence.tokens, evidence.tokens.logprob_max
    if drift is not None and not math.isfinite(drift):
        unfit["a golden token's logprob"], drift = "is not finite on one side", None
    return Noise(sites, unfit, drift, tokens.compared, tokens.differing, evidence.coverage.share)


def _unfit(finding: Finding) -> str | None:
    if finding.error_class == "biased":
        return f"is biased by {finding.metrics.bias_ulp:+.2g} ulp"
    if finding.error_class == "nonfinite":
        return "is not finite on one side"
    return None if math.isfinite(finding.metrics.allowance_ratio) else "has different integers"


def bound(noise: Sequence[float]) -> float:
    """An upper bound for the noise of further runs; see the module.

    Args:
        noise: of sites and runs, some at least above zero; those that were equal bit for bit are no sample of it.
    """
    seen = [value for value in noise if value > 0]
    most = max(seen, default=0.0)
    if len(seen) < FEW:
        return WITHOUT_SPREAD * most
    return max(AT_LEAST * most, most + SPREAD * statistics.stdev(seen))


def earn(runs: Sequence[Noise]) -> tuple[Earned, ...]:
    """The tolerances derived from runs, those of a kind's single sites before that of the kind.

    Kinds that were equal bit for bit in all runs get none: the default remains.
    """
    found: list[Earned] = []
    for kind in sorted({kind for run in runs for kind in run.sites}):
        sites: dict[str, list[float]] = {}
        for run in runs:
            for site, noise in run.sites.get(kind, {}).items():
                sites.setdefault(site, []).append(noise)
        differ = {site: noise for site, noise in sites.items() if max(noise) > 0}
        if differ:
            found += _of_kind(kind, differ, len(runs))
    return tuple(found)


def _of_kind(kind: NoiseKind, sites: dict[str, list[float]], runs: int) -> list[Earned]:
    single: list[Earned] = []
    while len(sites) > 1:
        noisiest = max(sites, key=lambda site: max(sites[site]))
        rest = {site: noise for site, noise in sites.items() if site != noisiest}
        most, others = max(sites[noisiest]), bound(_all(rest))
        # A site below the default needs no rule of its own, however quiet the others are.
        if most <= 1 or most <= MUCH_NOISIER * max(1.0, others):
            break
        single.append(Earned(kind, noisiest, most, noisiest, 1, runs, bound(sites[noisiest])))
        sites = rest
    at = max(sites, key=lambda site: max(sites[site]))
    return [*single, Earned(kind, "*", max(sites[at]), at, len(sites), runs, bound(_all(sites)))]


def _all(sites: Mapping[str, Sequence[float]]) -> list[float]:
    return [value for noise in sites.values() for value in noise]
