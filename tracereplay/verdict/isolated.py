"""Isolated replay's findings on kernels, as frozen values: part of a verdict.

Isolated
├── kernels        KernelFinding ...   one for each kernel and dtype that was executed and compared
└── not_replayed   NotReplayed ...     calls that were not, by kernel and reason
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracereplay.jsondata import optional
from tracereplay.verdict.measures import ErrorClass, Metrics, Tolerance

__all__ = ["NOT_ASKED", "Isolated", "KernelFinding", "NotReplayed"]

# Passes of a candidate's trace: what the kernels gave, and what they gave on float64 inputs.


# What stands in the place of a kernel's results (`event.Kernel.failed`).
NOT_ASKED = "not asked for"


@dataclass(frozen=True, slots=True)
class KernelFinding:
    """A kernel's results in isolation, on golden inputs, compared with golden's.

    Args:
        kernel: its name, ``aten.mm.default``.
        dtype: of the results.
        error_class: over all calls (JSON: ``class``).
        calls: compared.
        metrics: over all calls.
        tolerance: what was applied.
        passing_tolerance: the smallest multiple of it that would have passed.
        site: where the first call that differs ran, or empty.
        step: of that call.
    """

    kernel: str
    dtype: str
    error_class: ErrorClass
    calls: int
    metrics: Metrics
    tolerance: Tolerance | None = None
    passing_tolerance: Tolerance | None = None
    site: str = ""
    step: int = 0

    def as_dict(self) -> dict[str, Any]:
        applied, passing = self.tolerance, self.passing_tolerance
        return {
            "kernel": self.kernel, "dtype": self.dtype, "class": self.error_class, "calls": self.calls,
            "metrics": self.metrics.as_dict(), "tolerance": None if applied is None else applied.as_dict(),
            "passing_tolerance": None if passing is None else passing.as_dict(), "site": self.site,
            "step": self.step,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KernelFinding:
        return cls(
            data["kernel"], data["dtype"], data["class"], data["calls"], Metrics.from_dict(data["metrics"]),
            optional(Tolerance.from_dict, data["tolerance"]),
            optional(Tolerance.from_dict, data["passing_tolerance"]), data["site"], data["step"],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NotReplayed:
    """Calls of a kernel that were not executed, or have nothing to compare.

    Args:
        kernel: its name.
        calls: how many.
        reason: why: ``not replayable: it opens a file``, ``crashed: signal 11 (SIGSEGV)``.
        site: of the first of them.
    """

    kernel: str
    calls: int
    reason: str
    site: str = ""

    @property
    def crashed(self) -> bool:
        """Whether the call crashed in the candidate only."""
        return self.reason.startswith("crashed")

    def as_dict(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "calls": self.calls, "reason": self.reason, "site": self.site}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NotReplayed:
        return cls(data["kernel"], data["calls"], data["reason"], data["site"])


@dataclass(frozen=True, slots=True)
class Isolated:
    """Kernels replayed in isolation.

    Args:
        calls: of golden's kernels that were asked for.
        kernels: what was compared, in golden's order of their first calls.
        not_replayed: the rest.
    """

    calls: int
    kernels: tuple[KernelFinding, ...]
    not_replayed: tuple[NotReplayed, ...]

    @property
    def compared(self) -> int:
        """Calls that were executed and compared."""
        return self.calls - sum(left.calls for left in self.not_replayed)

    def as_dict(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "compared": self.compared,
            "kernels": [finding.as_dict() for finding in self.kernels],
            "not_replayed": [left.as_dict() for left in self.not_replayed],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Isolated:
        kernels = tuple(map(KernelFinding.from_dict, data["kernels"]))
        return cls(data["calls"], kernels, tuple(map(NotReplayed.from_dict, data["not_replayed"])))
