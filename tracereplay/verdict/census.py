"""What computes in an engine, whether or not an operator's tap sees it, as a verdict tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracereplay.census import Census, Counted, Unowned

__all__ = ["CensusFinding"]

_UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class CensusFinding:
    """The census of both sides.

    Args:
        golden, candidate: None where none was taken: by an older version, in a compiled engine, or of an engine
            that cannot take one.
    """

    golden: Census | None = None
    candidate: Census | None = None

    @property
    def unobserved(self) -> tuple[Counted, ...]:
        """Modules of both sides that compute unobserved, each once, those that compute most first."""
        rows = [row for side in (self.golden, self.candidate) if side is not None for row in side.unobserved]
        once = {row.module: row for row in sorted(rows, key=lambda row: row.computed)}
        return tuple(sorted(once.values(), key=lambda row: -row.computed))

    def as_dict(self) -> dict[str, Any] | str:
        """``"unavailable"`` if neither side has one."""
        if self.golden is None and self.candidate is None:
            return _UNAVAILABLE
        return {"golden": _as_dict(self.golden), "candidate": _as_dict(self.candidate)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | str | None) -> CensusFinding:
        if not isinstance(data, Mapping):
            return cls()
        return cls(_from_dict(data["golden"]), _from_dict(data["candidate"]))


def _as_dict(side: Census | None) -> dict[str, Any] | str:
    if side is None:
        return _UNAVAILABLE
    return {
        "observed": {"operators": side.operators, "calls": side.calls},
        "unobserved": [_row(row) for row in side.unobserved],
        "between": [_row(row) for row in side.between],
        "parameters": [
            {"name": p.name, "dtype": p.dtype, "shape": list(p.shape), "users": list(p.users)}
            for p in side.parameters
        ],
    }


def _row(row: Counted) -> dict[str, Any]:
    return {"module": row.module, "class": row.kind, "calls": row.calls, "computed": row.computed}


def _from_dict(data: Mapping[str, Any] | str) -> Census | None:
    if not isinstance(data, Mapping):
        return None
    unobserved, between = (
        tuple(Counted(r["module"], r["class"], r["calls"], r["computed"]) for r in data[key])
        for key in ("unobserved", "between")
    )
    left = tuple(Unowned(p["name"], p["dtype"], tuple(p["shape"]), tuple(p["users"])) for p in data["parameters"])
    return Census(data["observed"]["operators"], data["observed"]["calls"], unobserved, between, left)
