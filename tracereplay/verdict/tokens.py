"""Which tokens and logprobs differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracereplay.jsondata import optional, plain, real

__all__ = ["TokenDivergence", "TokenFinding"]


@dataclass(frozen=True, slots=True)
class TokenDivergence:
    """The first greedy token that the candidate chose differently; ``position`` counts from the prompt's start.

    ``request_id`` is the request's id as its client has it; None where golden does not say.
    """

    request: int
    position: int
    golden: int
    candidate: int
    sequence: int = 0
    request_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "request": self.request, "position": self.position, "golden": self.golden,
            "candidate": self.candidate, "sequence": self.sequence, "request_id": self.request_id,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenDivergence:
        return cls(
            data["request"], data["position"], data["golden"], data["candidate"], data.get("sequence", 0),
            data.get("request_id"),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenFinding:
    """Tokens and logprobs of the uninjected pass.

    Args:
        compared: tokens compared.
        first_divergence: None if every greedy choice is the same.
        logprob_max, logprob_mean: absolute difference of golden tokens' logprobs, in nats; None if none.
        logprobs: how many logprobs were compared.
        differing: greedy tokens that differ.
        forced: whether golden tokens were forced, so that every position stands for itself.
        allowed, logprob_allowed: how many greedy tokens may differ, and by how many nats logprobs may; None in
            verdicts of before that was said.
    """

    compared: int = 0
    first_divergence: TokenDivergence | None = None
    logprob_max: float | None = None
    logprob_mean: float | None = None
    logprobs: int = 0
    differing: int = 0
    forced: bool = True
    allowed: int | None = None
    logprob_allowed: float | None = None

    def as_dict(self) -> dict[str, Any]:
        first = self.first_divergence
        return {
            "compared": self.compared,
            "first_divergence": None if first is None else first.as_dict(),
            "logprob_abs_diff": {"max": plain(self.logprob_max), "mean": plain(self.logprob_mean)},
            "logprobs": self.logprobs,
            "differing": self.differing,
            "forced": self.forced,
            "allowed": {"differing": self.allowed, "logprob_max_abs": plain(self.logprob_allowed)},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenFinding:
        logprob, allowed = data["logprob_abs_diff"], data.get("allowed") or {}
        return cls(
            data["compared"], optional(TokenDivergence.from_dict, data["first_divergence"]),
            real(logprob["max"]), real(logprob["mean"]), data.get("logprobs", 0), data.get("differing", 0),
            data.get("forced", True), allowed.get("differing"), real(allowed.get("logprob_max_abs")),
        )  # fmt: skip
