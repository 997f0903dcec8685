"""The closure check: with every operator's own error cancelled, golden's logits must be reproduced bit for bit.

By induction from the first operator: it has golden inputs, so it repeats its injected output, which is replaced by
golden's, and so the next one has golden inputs. The pass therefore closes if each input and output has the bits
that it had in the injected pass, and the logits at the sampler are golden's. Where the first tensor differs, some
computation was not observed, or the engine is not deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracereplay.comparator.judging.routing import compare_routing
from tracereplay.comparator.numbers.align import index_pass, sites_of
from tracereplay.comparator.numbers.blockwise import compare_passes
from tracereplay.comparator.numbers.exclusions import drawn_at_random
from tracereplay.comparator.numbers.metrics import differing
from tracereplay.comparator.numbers.results import Mask, Rows
from tracereplay.comparator.numbers.tables import Array, PassIndex, TableKey, gather, pair_rows
from tracereplay.comparator.numbers.tolerance import Policy
from tracereplay.comparator.tokens.generation import Generation
from tracereplay.engines.naming import map_of
from tracereplay.passes import INJECTED, RECORD
from tracereplay.trace import Trace
from tracereplay.trace.rows import RowFinder
from tracereplay.verdict import Closure

__all__ = ["check_closure", "unstable_sites"]


def check_closure(golden: Trace, injected: Trace, closed: tuple[Trace, str], generation: Generation) -> Closure:
    """Whether a pass with everything cancelled reproduced golden.

    Args:
        golden: the golden recording.
        injected: trace with the engine's pass ``injected``.
        closed: trace and name of the pass in which everything was cancelled.
        generation: golden's sequences.
    """
    finder = RowFinder(generation.tokens)
    site_map = map_of(sites_of(golden, RECORD), sites_of(injected, INJECTED).values())
    mine = index_pass(golden, RECORD, finder.add, site_map)
    before, after = index_pass(injected, INJECTED, finder.find), index_pass(*closed, finder.find)
    # Batches may differ, since requests reach an engine in another process at any time. If all bits are reproduced
    # anyway, that proves closure; only a failure may be due to it.
    same = before.steps.same_rows(after.steps)
    broken = _first_broken(before, after, Rows(finder, generation.tokens), generation)
    if broken is not None:
        turned = [router.site for router in compare_routing(mine, after, None) if router.flips]
        return Closure(False, broken, flipped=tuple(turned), same_batches=same)
    back, rows = _logits_back(mine, before, after)
    if back < rows or not rows:
        return Closure(False, f"only {back} of {rows} rows of logits came back", back, same_batches=same)
    return Closure(True, None, back, same_batches=same)


def unstable_sites(injected: Trace, again: tuple[Trace, str], generation: Generation) -> tuple[str, ...]:
    """Sites whose results differ between two injected passes of one engine."""
    finder = RowFinder(generation.tokens)
    once, twice = index_pass(injected, INJECTED, finder.add), index_pass(*again, finder.find)
    found = compare_passes(once, twice, Rows(finder, generation.tokens), Policy().made_strict())
    return tuple(dict.fromkeys(f.key.site for f in found.findings if f.rows and f.error_class != "identical"))


def _first_broken(before: PassIndex, after: PassIndex, rows: Rows, generation: Generation) -> str | None:
    exclusions = [drawn_at_random(generation, before, rows)]
    found = compare_passes(before, after, rows, Policy().made_strict(), exclusions=exclusions, until_beyond=True)
    missing = found.coverage.not_compared
    first = found.first_different()
    if first is not None:
        what = f"input {first.key.index} of" if first.kind == "edge" else f"output {first.key.index} of"
        return f"{what} {first.key.site} is not what it was on golden inputs"
    if unmatched := [left.site for left in missing if not left.reason.startswith("drawn at random")]:
        return f"{unmatched[0]} did not run as in the injected pass"
    return None


def _logits_back(golden: PassIndex, injected: PassIndex, closed: PassIndex) -> tuple[int, int]:
    """How many rows of logits equal golden's (with the edge into the sampler cancelled too), and of how many."""
    tables = [index.tables.get(TableKey(index.sampler or "", "in", 0)) for index in (golden, injected, closed)]
    if None in tables:
        return 0, 0
    mine, before, after = (table for table in tables if table is not None)
    first, second = pair_rows(mine, before), pair_rows(mine, after)
    if not len(first.golden) or not np.array_equal(first.golden, second.golden):
        return 0, len(mine.ids)
    wanted = gather(mine, first.golden)
    arrived, now = gather(before, first.candidate), gather(after, second.candidate)
    back = _equal([now, arrived]) | _equal([now, wanted])
    return int(back.sum()), len(back)


def _equal(tables: Sequence[Array]) -> Mask:
    """Rows that are bitwise equal; none where the dtypes differ."""
    one, other = tables
    if one.dtype != other.dtype or one.shape != other.shape:
        return np.zeros(len(one), bool)
    return ~differing(one, other)
