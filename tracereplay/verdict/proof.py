"""What a bisection proved: that everything computing is observed, and what each operator contributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracereplay.jsondata import plain

__all__ = ["Attribution", "Closure"]


@dataclass(frozen=True, slots=True)
class Closure:
    """Whether the golden logits were reproduced bit for bit with every operator's own error cancelled.

    Args:
        held: whether they did.
        first_broken: where it breaks first, in words.
        rows: rows of logits that were reproduced.
        unstable: sites whose injected results are not reproducible; closure is claimed except for them.
        flipped: if it is broken, routers that send rows to different experts than in golden.
        same_batches: whether the injected pass and this one composed their batches alike.
    """

    held: bool
    first_broken: str | None = None
    rows: int = 0
    unstable: tuple[str, ...] = ()
    flipped: tuple[str, ...] = ()
    same_batches: bool = True

    def as_dict(self) -> dict[str, Any]:
        return {
            "held": self.held, "first_broken": self.first_broken, "rows": self.rows,
            "unstable": list(self.unstable), "flipped": list(self.flipped),
            "same_batches": self.same_batches,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Closure:
        return cls(
            data["held"], data["first_broken"], data.get("rows", 0), tuple(data.get("unstable", ())),
            tuple(data.get("flipped", ())), data.get("same_batches", True),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attribution:
    """How much of the difference cancelling ``operators`` removes: 1 is all, negative is worse than nothing.

    Args:
        operators: what was cancelled: operator classes, sites, edges, or settings by name.
        explains: ``1 - m(cancelled) / m(nothing cancelled)``, m the mean squared logprob difference.
        interval: 95 %, by resampling positions.
        role: ``all``, ``class``, ``classes`` (some together), ``sites``, ``minimal``, ``complement`` or
            ``settings``.
        restores: whether tokens and logprobs are then within the criterion.
        tokens_differ: greedy tokens that still differ.
        logprob_max: largest logprob difference that is left, in nats.
    """

    operators: tuple[str, ...]
    explains: float
    interval: tuple[float, float]
    measure: str = "logprob_sq_diff.mean"
    role: str = "class"
    restores: bool = False
    tokens_differ: int = 0
    logprob_max: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "operators": list(self.operators), "explains": plain(self.explains),
            "interval": [plain(v) for v in self.interval], "measure": self.measure, "role": self.role,
            "restores": self.restores, "tokens_differ": self.tokens_differ,
            "logprob_max": plain(self.logprob_max),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Attribution:
        low, high = data["interval"]
        return cls(
            tuple(data["operators"]), float(data["explains"]), (float(low), float(high)), data["measure"],
            data.get("role", "class"), data.get("restores", False), data.get("tokens_differ", 0),
            float(data.get("logprob_max", 0.0)),
        )  # fmt: skip
