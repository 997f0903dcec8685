"""Everything that a verdict is based on: the passes of two traces, compared."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tracereplay.census import Counted
from tracereplay.comparator.judging.settings import WEIGHTS_UPDATE, explains
from tracereplay.comparator.judging.staleness import Versions
from tracereplay.comparator.judging.structure import Unshared
from tracereplay.comparator.numbers.results import Comparison, Finding
from tracereplay.comparator.numbers.tolerance import Policy
from tracereplay.comparator.tokens.requests import OtherPrompts
from tracereplay.trace import Trace
from tracereplay.verdict import Coverage, Mode, RoutingFinding, SettingDifference, TokenFinding
from tracereplay.verdict.census import CensusFinding
from tracereplay.verdict.inside import Inside
from tracereplay.verdict.oracle import Oracle
from tracereplay.verdict.rollout import Rollout

__all__ = ["Evidence"]

# Where a tensor could not be paired at all, as opposed to rows that were left out for a reason.
_ABSENT = ("the candidate has no such site", "the candidate never called it")
_LACKS_OUTPUT = "the candidate's call has no output"


@dataclass(frozen=True)
class Evidence:
    """Everything that the verdict is based on.

    Args:
        comparison: of the pass that belongs to the mode.
        rerun: injected mode: of the rerun, up to where it first leaves the tolerance.
        unstable: sites that differed between two injected passes.
        other_golden: the candidate is a replay of another golden trace, by its digest.
        rollout: importance ratios in the uninjected pass, if there is one and it has logprobs.
        routing: the findings for each router, in the uninjected pass if there is one.
        inside: kernels of the first operator that diverges, else of that with the largest error, if both recorded
            them.
        oracle: the comparison with float64 references, if requested.
        tie: the first divergence is of experts that a near tie in their router chose.
        unshared: operators that only one side runs right before the first divergence, if that is an edge.
        built: configuration in which the two sides' operators at the first divergence differ.
        prompts: requests whose prompts differ.
        versions: golden's and the candidate's weights, in the uninjected pass if there is one.
        census: what computes in the two engines, whether or not it was recorded.
    """

    golden: Trace
    candidate: Trace
    digest: str
    policy: Policy
    mode: Mode
    settings: tuple[SettingDifference, ...]
    comparison: Comparison
    rerun: Comparison | None
    tokens: TokenFinding
    unstable: tuple[str, ...]
    other_golden: bool
    notes: tuple[str, ...] = ()
    rollout: Rollout | None = None
    versions: tuple[Versions, Versions] = (Versions(), Versions())
    routing: tuple[RoutingFinding, ...] = ()
    inside: Inside | None = None
    oracle: Oracle | None = None
    tie: bool = False
    unshared: Unshared | None = None
    built: tuple[tuple[str, Any, Any], ...] = ()
    prompts: OtherPrompts | None = None
    census: CensusFinding = field(default_factory=CensusFinding)

    @property
    def coverage(self) -> Coverage:
        return replace(self.comparison.coverage, census=self.census)

    @property
    def unobserved(self) -> tuple[Counted, ...]:
        """Modules that compute unobserved, unless tokens and logprobs show that nothing in them matters.

        That they do only where both agree to the bit, in an engine that was fed nothing.
        """
        same = self.tokens.compared > 0 and self.tokens.differing == 0 and self.tokens.logprob_max == 0.0
        return () if same else self.census.unobserved

    @property
    def other_weights(self) -> bool:
        return any(d.name == "weights" and None not in (d.golden, d.candidate) for d in self.settings)

    @property
    def explaining(self) -> tuple[SettingDifference, ...]:
        """Settings that explain the difference, by what they change at the place where it begins.

        That place is the first divergence if it is to blame, else the first difference of all, before which
        everything is identical. If tokens diverge and no place is out of tolerance, it is any that differs.
        """
        first = self.comparison.first()
        if first is not None:
            begins = first if self.provable else self.comparison.first_different()
            places = [] if begins is None else [begins]
        else:  # what the sampler computes is no reason to part: its tokens come of the logits that it is given
            places = [f for f in self.comparison.findings if f.first_different and f.role != "sampler"]
        return tuple(d for d in self.settings if any(_explains(d, place) for place in places))

    @property
    def besides(self) -> Finding | None:
        """In the injected pass: the first place out of tolerance that no setting explains."""
        beyond = (f for f in self.comparison.findings if f.onset is not None and self.mode == "injected")
        return next((f for f in beyond if not any(_explains(d, f) for d in self.settings)), None)

    @property
    def other_update(self) -> bool:
        """Whether weights were updated at different places, or with the cache kept on one side only."""
        return any(d.name == WEIGHTS_UPDATE for d in self.settings)

    @property
    def update_explains(self) -> bool:
        """Whether that explains the first divergence, or the difference without one.

        What older weights left is read out of the cache, which no tap sees: attention may differ on equal inputs.
        In the injected pass the cache is golden's too, and what differs there is an operator's own doing.
        """
        first = self.comparison.first()
        if not self.other_update or first is None or not self.provable:
            return self.other_update
        return self.mode != "injected" and first.role == "attention"

    @property
    def tokens_part(self) -> bool:
        return self.tokens.differing > self.policy.differing_tokens

    @property
    def logprobs_part(self) -> bool:
        return (self.tokens.logprob_max or 0.0) > self.policy.logprob_max_abs

    @property
    def other_quantity(self) -> bool:
        """Whether the two report different quantities as logprobs, and the logprobs otherwise agree."""
        reported = None if self.rollout is None else self.rollout.reported
        return reported is not None and reported.differ and reported.raw_max_diff <= self.policy.logprob_max_abs

    @property
    def only_quantity(self) -> bool:
        """Whether nothing else differs: no token, and nothing before the sampler is out of tolerance."""
        first = self.comparison.first()
        return self.other_quantity and not self.tokens_part and (first is None or first.role == "sampler")

    @property
    def conclusive(self) -> Finding | None:
        """The first finding out of tolerance, if it alone makes the two diverge, whatever their tokens.

        In the injected pass it always does. Elsewhere its error may be inherited, and only a value that is not
        finite, or any difference under a strict policy, suffices.
        """
        first = self.comparison.first()
        if first is None or self.mode == "injected" or self.policy.strict or first.error_class == "nonfinite":
            return first
        return None

    @property
    def provable(self) -> bool:
        """Whether the first divergence is to blame: in the injected pass, or if everything before is identical."""
        first = self.comparison.first()
        if self.mode == "injected" or first is None:
            return first is not None
        onset, different = first.onset, first.first_different
        same_call = onset is not None and different is not None and onset.order == different.order
        return same_call and first is self.comparison.first_different()

    @property
    def unmatched(self) -> list[str]:
        """Sites that the two engines do not share, or whose tensors cannot be compared.

        A call that lacks some outputs and has others is no such site: a compiler removes what nothing uses,
        such as the residual after the last norm.
        """
        findings = self.comparison.findings
        shared = {f.key.site for f in findings if f.kind == "operator"}
        missing = [n for n in self.coverage.not_compared if n.site not in shared]
        found = [n.site for n in missing if n.reason.startswith((*_ABSENT, _LACKS_OUTPUT))]
        found += [f.key.site for f in findings if f.error_class == "incomparable" and f.reason
                  and not f.reason.startswith("none of its rows")]  # fmt: skip
        return list(dict.fromkeys(found))


def _explains(difference: SettingDifference, place: Finding) -> bool:
    return explains(difference, place.role, place.key.index, edge=place.kind == "edge")
