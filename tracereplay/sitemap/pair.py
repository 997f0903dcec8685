"""One operator of the candidate's and what golden has of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tracereplay.event import Parameter, Site

__all__ = ["HeadOrder", "Pair", "PairedBy", "Relation", "outputs_of", "weight_of"]

Relation: TypeAlias = Literal["rename", "join", "sum", "reorder"]
PairedBy: TypeAlias = Literal["name", "tensors", "shape", "table"]


@dataclass(frozen=True, slots=True)
class HeadOrder:
    """How q, k and v lie in one output of both sides, of which only one has reordered what the checkpoint has.

    stored: for each key/value head its query heads, its keys, its values; else: all queries, all keys, all values.

    Args:
        kv_heads, queries, size: key/value heads, query heads of each, and the numbers in a head.
        golden_stored: whether golden's is the checkpoint's order.
    """

    kv_heads: int
    queries: int
    size: int
    golden_stored: bool

    @property
    def width(self) -> int:
        return self.kv_heads * (self.queries + 2) * self.size

    def places(self) -> npt.NDArray[np.int64]:
        """Of each number in the candidate's output, where it is in golden's."""
        groups, each, total = self.kv_heads, self.queries, self.kv_heads * self.queries
        heads = [
            [*range(group * each, (group + 1) * each), total + group, total + groups + group]
            for group in range(groups)
        ]
        stored = (np.array(heads).reshape(-1, 1) * self.size + np.arange(self.size)).reshape(-1)
        return np.argsort(stored) if self.golden_stored else stored


@dataclass(frozen=True, slots=True)
class Pair:
    """A site of the candidate's and golden's of the same computation.

    Args:
        site: the candidate's.
        golden: golden's; several where the candidate's joins them, in the order in which it does.
        relation: how they are related; None where they are one and the same.
        paired_by: what told so.
        part: where golden's is the joined one: which of its parts this is, and in which proportions they lie side
            by side in golden's output (on one rank).
        order: where both give q, k and v, in different orders.
    """

    site: str
    golden: tuple[str, ...]
    relation: Relation | None
    paired_by: PairedBy
    part: tuple[int, tuple[int, ...]] | None = None
    order: HeadOrder | None = None

    @property
    def plain(self) -> bool:
        """Whether golden's call is the candidate's as it is."""
        return self.golden == (self.site,) and self.part is None and self.order is None

    @property
    def golden_site(self) -> str | None:
        """Golden's name, or names, as reports show them; None where it is the candidate's."""
        return None if self.golden == (self.site,) else " | ".join(self.golden)


def weight_of(site: Site) -> Parameter | None:
    """The parameter that tells which operator it is: its first of which the tensors are known."""
    return next((parameter for parameter in site.parameters if parameter.tensors), None)


def outputs_of(site: Site) -> int | None:
    """How many outputs a linear operator has on a rank, if its weight is a plain matrix."""
    weight = weight_of(site)
    plain = weight is not None and len(weight.shape) == 2 and weight.dtype.startswith(("float", "bfloat"))
    return weight.shape[0] if weight is not None and plain else None
