"""Which side is more accurate, as frozen values: the key ``oracle`` of a verdict.

Oracle
├── findings      OracleFinding ...   one for each operator's output, or each kernel
└── not_covered   NotCovered ...      what has no reference, and why
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tracereplay.jsondata import one_of, plain

__all__ = ["NEARER", "Nearer", "NotCovered", "Oracle", "OracleError", "OracleFinding"]

Nearer: TypeAlias = Literal["golden nearer", "candidate nearer", "equal"]
NEARER: tuple[Nearer, ...] = ("golden nearer", "candidate nearer", "equal")


@dataclass(frozen=True, slots=True)
class OracleError:
    """How far results are from a float64 reference.

    Args:
        relative_l2: root mean square over rows of ``|result - reference| / |reference|``.
        max_ulp: largest error in units of the last place of the result's dtype, where the reference is at least
            its row's root mean square.
        lean_ulp: mean error along the reference's signs in such units, each clipped to +-2: -0.5 where results are
            truncated, 0 where they are rounded to nearest.
    """

    relative_l2: float
    max_ulp: float
    lean_ulp: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "relative_l2": plain(self.relative_l2), "max_ulp": plain(self.max_ulp),
            "lean_ulp": plain(self.lean_ulp),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OracleError:
        return cls(float(data["relative_l2"]), float(data["max_ulp"]), float(data["lean_ulp"]))


@dataclass(frozen=True, slots=True)
class OracleFinding:
    """Golden's and the candidate's errors of one operator's output against the reference.

    Args:
        site, operator: which; of a kernel, empty: all sites that ran it.
        kernel: its name, or None of an operator.
        output: which output.
        rows: compared.
        golden, candidate: their errors.
        nearer: which side is more accurate; see ORACLE.md.
    """

    site: str
    operator: str
    kernel: str | None
    output: int
    rows: int
    golden: OracleError
    candidate: OracleError
    nearer: Nearer

    def as_dict(self) -> dict[str, Any]:
        return {
            "site": self.site, "operator": self.operator, "kernel": self.kernel, "output": self.output,
            "rows": self.rows, "golden": self.golden.as_dict(), "candidate": self.candidate.as_dict(),
            "nearer": self.nearer,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OracleFinding:
        return cls(
            data["site"], data["operator"], data["kernel"], data["output"], data["rows"],
            OracleError.from_dict(data["golden"]), OracleError.from_dict(data["candidate"]),
            one_of(data["nearer"], NEARER, "judgement"),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NotCovered:
    """An operator (or kernel) that has no reference, and why."""

    site: str
    operator: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return {"site": self.site, "operator": self.operator, "reason": self.reason}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NotCovered:
        return cls(data["site"], data["operator"], data["reason"])


@dataclass(frozen=True, slots=True)
class Oracle:
    """What the references say.

    Args:
        findings: in golden's order.
        not_covered: the rest.
        same_inputs: whether both sides were given golden's inputs. If not, each is held against the reference on
            its own inputs, and errors that it inherited do not count.
    """

    findings: tuple[OracleFinding, ...] = ()
    not_covered: tuple[NotCovered, ...] = ()
    same_inputs: bool = True

    def as_dict(self) -> dict[str, Any]:
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "not_covered": [left.as_dict() for left in self.not_covered],
            "same_inputs": self.same_inputs,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Oracle:
        findings = tuple(map(OracleFinding.from_dict, data["findings"]))
        return cls(findings, tuple(map(NotCovered.from_dict, data["not_covered"])), data["same_inputs"])
