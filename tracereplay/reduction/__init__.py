"""Two traces reduced to the smallest that show the same: what is attached to a report.

    golden, candidate ──Whole──▶ what they show, and in which Parts they can be kept
         guesses ──▶ search ──Part──▶ Tries: written anew, compared (or replayed by an engine, and compared)
         reduce  ──▶ Reduced: two finished traces, and sentences that say what was dropped

A part keeps requests from their start, so that a replay can force their tokens, and operators from the first one
to the one that diverges: what golden has not is not fed in a replay, and what follows would inherit its errors.
Only an engine can tell that fewer will do.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracereplay.reduction.reducing import Reduced, reduce
else:
    from tracereplay.lazily import imported_on_use

    __getattr__ = imported_on_use(__name__, {"tracereplay.reduction.reducing": ("Reduced", "reduce")})

__all__ = ["Reduced", "reduce"]
