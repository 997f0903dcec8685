"""Float64 references: what operators should have returned, and which engine is more accurate (ORACLE.md).

tables of rows ──apply.consult──▶ references.* in float64 ──duel.Duel──▶ `oracle.Oracle`
"""

from tracereplay.comparator.oracle.apply import consult
from tracereplay.comparator.oracle.duel import Duel

__all__ = ["Duel", "consult"]
