"""Which request it was, in the words of who asked: ids beside the numbers of a verdict's first divergences."""

from __future__ import annotations

from dataclasses import replace

from tracereplay.errors import TraceError
from tracereplay.trace import Trace
from tracereplay.verdict import Verdict

__all__ = ["with_ids"]


def with_ids(verdict: Verdict, golden: Trace) -> Verdict:
    """``verdict`` with the ids that golden's requests had at their clients, where it says them."""
    first, visible, token = verdict.first_divergence, verdict.first_visible, verdict.tokens.first_divergence
    if not golden.run.command or (first, visible, token) == (None, None, None):
        return verdict
    try:
        ids = {known.request: known.identity.client_id or known.identity.id for known in golden.requests}
    except TraceError:  # who asked says nothing about operators
        return verdict
    return replace(
        verdict,
        first_divergence=None if first is None else replace(first, request_id=ids.get(first.request)),
        first_visible=None if visible is None else replace(visible, request_id=ids.get(visible.request)),
        tokens=replace(
            verdict.tokens,
            first_divergence=None if token is None else replace(token, request_id=ids.get(token.request)),
        ),
    )
