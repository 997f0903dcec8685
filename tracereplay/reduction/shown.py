"""What a comparison shows, and must still show when the traces are reduced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tracereplay.comparator.tokens.generation import first_differences, read_generation
from tracereplay.comparator.tokens.sampled import SampledTokens, shared_places
from tracereplay.passes import RECORD, RERUN
from tracereplay.trace import Trace
from tracereplay.verdict import Cause, Outcome, Verdict

__all__ = ["Shown", "SiteShown", "TokenShown", "shown_by"]


class SiteShown(NamedTuple):
    """The first divergence; ``kernel`` is None where kernels are not told apart."""

    kind: str
    site: str
    error_class: str
    kernel: str | None


class TokenShown(NamedTuple):
    """The first token that differs, or whose logprob does by more than is allowed; then ``golden`` and
    ``candidate`` are the same token. ``position`` counts from the prompt's start."""

    request: int
    sequence: int
    position: int
    golden: int
    candidate: int


class Shown(NamedTuple):
    """What two traces show; requests by their numbers in the whole traces.

    Args:
        site: the first divergence.
        token: where there is none, the first differing token or logprob.
    """

    verdict: Outcome
    cause: Cause | None
    site: SiteShown | None
    token: TokenShown | None

    def words(self) -> str:
        """In a few words, for people."""
        if self.site is not None:
            at = self.site
            where = f"what arrives at {at.site}" if at.kind == "edge" else at.site
            return f"{self.verdict}, {where} {at.error_class}" + (f" ({at.kernel})" if at.kernel else "")
        if self.token is not None:
            return f"{self.verdict}, request {self.token.request} at position {self.token.position}"
        return self.verdict


def shown_by(verdict: Verdict, golden: Trace, candidate: Trace, numbers: Sequence[int] | None = None) -> Shown:
    """What a comparison of two traces shows.

    Args:
        verdict: of the comparison.
        golden, candidate: what was compared.
        numbers: by the number of a request in these traces, that in the whole ones; None: they are the whole ones.
    """
    first = verdict.first_divergence
    if first is not None:
        site = SiteShown(first.kind, first.site, first.error_class, first.kernel)
        return Shown(verdict.verdict, verdict.cause, site, None)
    token = _token(verdict, golden, candidate)
    if token is not None and numbers is not None:
        token = token._replace(request=numbers[token.request])
    return Shown(verdict.verdict, verdict.cause, None, token)


def _token(verdict: Verdict, golden: Trace, candidate: Trace) -> TokenShown | None:
    told = verdict.tokens
    if (at := told.first_divergence) is not None and told.differing > (told.allowed or 0):
        return TokenShown(at.request, at.sequence, at.position, at.golden, at.candidate)
    if told.logprob_max is None or told.logprob_allowed is None or told.logprob_max <= told.logprob_allowed:
        return None
    return _logprob(golden, candidate, told.logprob_allowed, forced=told.forced)


def _logprob(golden: Trace, candidate: Trace, allowed: float, *, forced: bool) -> TokenShown | None:
    """The first token whose logprob differs by more than is allowed; None if that is one of a prompt."""
    name = RERUN if forced else RECORD
    if name not in candidate.passes:
        return None
    mine, theirs = (
        SampledTokens(s for record in trace.records(of, trace.ranks(of)[0]) for s in record.sampled)
        for trace, of in ((golden, RECORD), (candidate, name))
    )
    places = shared_places(mine, theirs)
    parted = {} if forced else first_differences(read_generation(golden, RECORD), read_generation(candidate, name))
    same = places.before(parted) & places.reported & (places.tokens[0] == places.tokens[1])
    with np.errstate(invalid="ignore"):
        within = np.abs(places.logprobs[0] - places.logprobs[1]) <= allowed
    equal = (places.logprobs[0] == places.logprobs[1]) | np.isnan(places.logprobs).all(axis=0)
    beyond = np.flatnonzero(same & ~within & ~equal)
    if not len(beyond):
        return None
    request, sequence, position = places.keys[beyond[0]].tolist()
    token = int(places.tokens[0][beyond[0]])
    return TokenShown(request, sequence, position, token, token)
