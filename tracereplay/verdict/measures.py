"""How much two tensors differ, and how much they may: the measures used by every finding of a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tracereplay.jsondata import plain

__all__ = [
    "BEYOND", "CLASSES", "ErrorClass", "Metrics", "Tolerance", "Worst", "precedence", "rounded_up", "severity",
]  # fmt: skip

ErrorClass: TypeAlias = Literal["identical", "rounding", "biased", "exceeds", "nonfinite", "incomparable"]

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
    """

    equal: float = 1.0
    allowance_ratio: float = 0.0
    relative_l2: float = 0.0
    max_abs: float = 0.0
    max_ulp: float = 0.0
    bias_ulp: float = 0.0
    nonfinite: int = 0
    worst: Worst | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "equal": self.equal, "allowance_ratio": plain(self.allowance_ratio),
            "relative_l2": plain(self.relative_l2), "max_abs": plain(self.max_abs),
            "max_ulp": plain(self.max_ulp), "bias_ulp": plain(self.bias_ulp), "nonfinite": self.nonfinite,
            "worst": None if self.worst is None else self.worst.as_dict(),
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
        )


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The error that an element may have: ``eps(dtype) * (a * |golden| + b * trimmed RMS of its row)``.

    Args:
        a, b: the two factors; both zero means bit for bit.
        dtype: whose eps; the coarser of the two sides'.
        source: where the factors come from: ``default``, ``strict``, or the policy rule in words.
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
