"""What two engines ran inside one operator, side by side, as frozen values: the key ``kernels`` of a verdict.

Inside
├── rows      KernelRow ...     golden's kernels and the candidate's, aligned
└── shared    SharedValue ...   values that both compute, wherever
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tracereplay.jsondata import optional
from tracereplay.verdict.measures import ErrorClass, Metrics

__all__ = ["Inside", "KernelRow", "SharedValue", "Why"]

# Why this operator: it is the first that diverges; or, within tolerance, it errs most of all.
Why: TypeAlias = Literal["first divergence", "largest error"]


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One kernel of either side, or one of each that do the same.

    Args:
        golden, candidate: names; None where the other side has no counterpart.
        result: of golden's kernel, or else of the candidate's: ``bfloat16[2, 128]``.
        inputs: class of what arrives, where both ran it: whether errors came with it.
        error_class: of what it gives or writes (JSON: ``class``).
        metrics: of that.
    """

    golden: str | None
    candidate: str | None
    result: str
    inputs: ErrorClass | None = None
    error_class: ErrorClass | None = None
    metrics: Metrics | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "golden": self.golden, "candidate": self.candidate, "result": self.result, "inputs": self.inputs,
            "class": self.error_class, "metrics": None if self.metrics is None else self.metrics.as_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KernelRow:
        return cls(
            data["golden"], data["candidate"], data["result"], data["inputs"], data["class"],
            optional(Metrics.from_dict, data["metrics"]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SharedValue:
    """A value that kernels of different kinds both compute.

    Args:
        golden, candidate: places in ``rows``.
        result: golden's, with its argument's name where it is written: ``residual bfloat16[2, 128]``; the
            candidate's may be wider.
        error_class: how they differ (JSON: ``class``).
        metrics: of that.
    """

    golden: int
    candidate: int
    result: str
    error_class: ErrorClass
    metrics: Metrics

    def as_dict(self) -> dict[str, Any]:
        return {
            "golden": self.golden, "candidate": self.candidate, "result": self.result,
            "class": self.error_class, "metrics": self.metrics.as_dict(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SharedValue:
        metrics = Metrics.from_dict(data["metrics"])
        return cls(data["golden"], data["candidate"], data["result"], data["class"], metrics)


@dataclass(frozen=True, slots=True)
class Inside:
    """The kernels of one call of an operator.

    Args:
        site, operator: which.
        why: why this one.
        step: golden's.
        tokens: rows of the batch that were compared.
        rows: aligned kernels; those that only look at memory otherwise, or ask for some, are left out.
        shared: values that both compute in kernels that are not the same.
        first: the place in ``rows`` of the first kernel that gives something else on the same inputs; None where
            there is no such one.
        not_compared: why the two could not be compared, if so.
    """

    site: str
    operator: str
    why: Why
    step: int
    tokens: int
    rows: tuple[KernelRow, ...] = ()
    shared: tuple[SharedValue, ...] = ()
    first: int | None = None
    not_compared: str | None = None

    @property
    def alike(self) -> bool:
        """Whether both ran the same kernels in the same order."""
        return all(row.golden == row.candidate for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        return {
            "site": self.site, "operator": self.operator, "why": self.why, "step": self.step,
            "tokens": self.tokens, "rows": [row.as_dict() for row in self.rows],
            "shared": [value.as_dict() for value in self.shared], "first": self.first,
            "not_compared": self.not_compared,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Inside:
        return cls(
            data["site"], data["operator"], data["why"], data["step"], data["tokens"],
            tuple(map(KernelRow.from_dict, data["rows"])), tuple(map(SharedValue.from_dict, data["shared"])),
            data["first"], data["not_compared"],
        )  # fmt: skip
