"""One operator of the candidate's and what golden has of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tracereplay.event import Parameter, Site

__all__ = ["Pair", "PairedBy", "Relation", "outputs_of", "weight_of"]

Relation: TypeAlias = Literal["rename", "join", "sum"]
PairedBy: TypeAlias = Literal["name", "tensors", "shape", "table"]


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
    """

    site: str
    golden: tuple[str, ...]
    relation: Relation | None
    paired_by: PairedBy
    part: tuple[int, tuple[int, ...]] | None = None

    @property
    def plain(self) -> bool:
        """Whether golden's call is the candidate's as it is."""
        return self.golden == (self.site,) and self.part is None

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
