"""How much two tensors differ, and how much they may: the measures used by every finding of a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tracereplay.jsondata import optional, plain, real

__all__ = [
    "BEYOND", "CLASSES", "ErrorClass", "Measure", "Metrics", "Siblings", "Signature", "Tolerance", "Worst",
    "precedence", "rounded_up", "severity",
]  # fmt: skip

ErrorClass: TypeAlias = Literal["identical", "rounding", "biased", "exceeds", "nonfinite", "incomparable"]

# What a bias along the values' signs looks like: the same at every mantissa, or growing with it.
Signature: TypeAlias = Literal["truncation", "factor"]

# In what a tensor may stand apart from its siblings: bias along the signs (ulp), share of elements that differ,
# relative L2 of a row (eps of the dtype).
Measure: TypeAlias = Literal["bias_ulp", "differing", "relative_l2"]

# From harmless to worst. Incomparable stands between: nothing was seen to be wrong, nothing was seen at all.
CLASSES: tuple[ErrorClass, ...] = ("identical", "rounding", "incomparable", "biased", "exceeds", "nonfinite")
BEYOND = CLASSES[CLASSES.index("exceeds") :]  # a call shows it; a bias shows in many calls only


def severity(error_class: ErrorClass, allowance_ratio: float) -> tuple[int, float]:
    """A key that sorts from harmless to worst: by class, then by the error over its allowance."""
    return CLASSES.index(error_class), allowance_ratio


def precedence(error_class: ErrorClass, order: int) -> tuple[bool, int]:
    """A key whose least is the first divergence: in golden execution order, a bias only where nothing is worse.

    Why a bias comes last: it is mostly a way of rounding that a whole engine has, and begins in the first layer,
    before any fault.

    Args:
        error_class: of what is out of tolerance.
        order: of the call where that begins.
    """
    return error_class not in BEYOND, order


@dataclass(frozen=True, slots=True)
class Worst:
    """The element whose error is largest against its allowance.

    Args:
        request, sequence, position: its row.
        index: of the element in its row, flattened.
        golden, candidate: the two values.
        step: golden's step that computed the row.
    """

    request: int
    sequence: int
    position: int
    index: int
    golden: float
    candidate: float
    step: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "request": self.request, "sequence": self.sequence, "position": self.position, "index": self.index,
            "golden": plain(self.golden), "candidate": plain(self.candidate), "step": self.step,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Worst:
        return cls(
            data["request"], data["sequence"], data["position"], data["index"], float(data["golden"]),
            float(data["candidate"]), data.get("step", 0),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Siblings:
    """How a tensor compares with those of its siblings: operators of one class and configuration, called alike.

    Args:
        count: of siblings with enough rows to tell, itself included.
        signature: of its bias along the values' signs; None where it has none.
        apart: whether it stands so far from them that it is biased, though each figure is within tolerance.
        measure: in which it stands farthest from them. None, as are the following, for fewer than four.
        value: its own, in the units of `Measure`.
        median, spread: of the others, in the same units; the spread is a robust standard deviation that is shrunk
            towards what honest engines show.
        score: distance from their median in spreads, as a normal deviate.
    """

    count: int
    signature: Signature | None = None
    apart: bool = False
    measure: Measure | None = None
    value: float | None = None
    median: float | None = None
    spread: float | None = None
    score: float | None = None

    @property
    def distance(self) -> float:
        """How far it is from the others' median, in the units of `measure`; 0 for fewer than four."""
        return 0.0 if self.value is None or self.median is None else abs(self.value - self.median)

    def as_dict(self) -> dict[str, Any]:
        numbers = {name: plain(getattr(self, name)) for name in ("value", "median", "spread", "score")}
        return {
            "count": self.count, "signature": self.signature, "apart": self.apart, "measure": self.measure,
            **numbers,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Siblings:
        numbers = (real(data[name]) for name in ("value", "median", "spread", "score"))
        return cls(data["count"], data["signature"], data["apart"], data["measure"], *numbers)


@dataclass(frozen=True, slots=True)
class Metrics:
    """How two tensors differ, over all rows that were compared.

    Args:
        equal: share of elements that are bitwise equal, 0 to 1.
        allowance_ratio: errors over what is allowed, of the worst row; see `comparator.numbers.metrics` (with a
            strict tolerance: over the default one).
        relative_l2: of the worst row, ``|candidate - golden| / |golden|``.
        max_abs: largest absolute error.
        max_ulp: largest error in units of the last place of the larger of the two values.
        bias_ulp: mean error in units of the last place, signed: along the values' signs or along the axis,
            whichever leans more.
        nonfinite: elements where one is finite and the other is not, or both are not and differ.
        worst: the element with the largest error for its allowance, in that row; None where nothing differs.
        siblings: how it compares with operators like it; None where that was not judged (not on golden inputs, or
            nothing differs in any of them). Its key is in JSON only where there are.
    """

    equal: float = 1.0
    allowance_ratio: float = 0.0
    relative_l2: float = 0.0
    max_abs: float = 0.0
    max_ulp: float = 0.0
    bias_ulp: float = 0.0
    nonfinite: int = 0
    worst: Worst | None = None
    siblings: Siblings | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "equal": self.equal, "allowance_ratio": plain(self.allowance_ratio),
            "relative_l2": plain(self.relative_l2), "max_abs": plain(self.max_abs),
            "max_ulp": plain(self.max_ulp), "bias_ulp": plain(self.bias_ulp), "nonfinite": self.nonfinite,
            "worst": None if self.worst is None else self.worst.as_dict(),
            **({} if self.siblings is None else {"siblings": self.siblings.as_dict()}),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Metrics:
        worst = data.get("worst")
        return cls(
            equal=float(data["equal"]),
            allowance_ratio=float(data["allowance_ratio"]),
            relative_l2=float(data["relative_l2"]),
            max_abs=float(data["max_abs"]),
            max_ulp=float(data["max_ulp"]),
            bias_ulp=float(data["bias_ulp"]),
            nonfinite=int(data["nonfinite"]),
            worst=None if worst is None else Worst.from_dict(worst),
            siblings=optional(Siblings.from_dict, data.get("siblings")),
        )


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The error that an element may have: ``eps(dtype) * (a * |golden| + b * trimmed RMS of its row)``.

    Args:
        a, b: the two factors; both zero means bit for bit.
        dtype: whose eps; the coarser of the two sides'.
        source: where the factors come from: ``default``, ``strict``, or the policy rule in words; and what
            single elements may be off by, where that is more.
    """

    a: float
    b: float
    dtype: str = ""
    source: str = "default"

    def as_dict(self) -> dict[str, Any]:
        return {"a": plain(self.a), "b": plain(self.b), "dtype": self.dtype, "source": self.source}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tolerance:
        return cls(float(data["a"]), float(data["b"]), data["dtype"], data["source"])


def rounded_up(value: float, digits: int = 3) -> float:
    """The next number of that many significant digits that is not smaller; what is not finite is as it is.

    Args:
        value: at least 0.
        digits: significant ones, in decimal.
    """
    if not math.isfinite(value) or value < 1e-300:  # below, a unit in the last digit is no number any more
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.{digits}g}")
