"""Routers of mixture-of-experts layers: rows that go to different experts, and rows that nearly do.

A router sends a row to the experts with its k largest logits. If the k-th and the next one are close, a rounding
error swaps their order, and the row is computed by a different expert: a *routing flip*. The result is then far
from golden, although only rounding differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tracereplay.comparator.numbers.dtypes import widen
from tracereplay.comparator.numbers.gates import LOGITS, gate_of
from tracereplay.comparator.numbers.results import Comparison, Exclusion, Finding, Mask, Rows
from tracereplay.comparator.numbers.tables import Array, Ints, PassIndex, Table, TableKey, gather, pair_rows
from tracereplay.event import RowKey, Site
from tracereplay.verdict import RoutingFinding

__all__ = ["compare_routing", "flipped_rows", "top_k_gap", "top_k_set", "turned_by_a_tie"]


def top_k_set(logits: Array, k: int) -> Mask:
    """Which experts each row goes to; ``bool`` of the shape of ``logits``, ``[rows, experts]``.

    Of equal logits the first are taken, on both sides alike.
    """
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    chosen = np.zeros(logits.shape, bool)
    np.put_along_axis(chosen, best, True, axis=1)
    return chosen


def top_k_gap(logits: Array, k: int) -> Array:
    """By how much the k-th largest logit of each row exceeds the next; ``[rows]``."""
    ordered = np.sort(logits, axis=1)
    gap: Array = ordered[:, -k] - ordered[:, -k - 1]
    return gap


def flipped_rows(golden: Array, arrived: Array, k: int) -> Mask:
    """Rows that go to different experts by the logits that arrived than by golden's."""
    flipped: Mask = (top_k_set(golden, k) != top_k_set(arrived, k)).any(axis=1)
    return flipped


def compare_routing(
    golden: PassIndex, free: PassIndex, injected: Comparison | None, exclusions: Sequence[Exclusion] = ()
) -> tuple[RoutingFinding, ...]:
    """The findings for each router, in golden's order, except routers that do not choose by the largest logits.

    Args:
        golden: the golden pass.
        free: a pass in which nothing was fed, or an injected one if there is no other.
        injected: the comparison of the injected pass, by which a router's own error is known.
        exclusions: rows not to compare.
    """
    found = []
    for table, k in _routers(golden):
        other = free.tables.get(table.key)
        pair = None if other is None else _logits(table, other, exclusions)
        if pair is None:
            continue
        flips = int(flipped_rows(*pair, k).sum())
        error = _own_error(golden, table, injected)
        near = None if error is None else int((top_k_gap(pair[0], k) <= error).sum())
        found.append(RoutingFinding(table.key.site, len(pair[0]), flips, near))
    return tuple(found)


def turned_by_a_tie(golden: PassIndex, injected: Comparison, finding: Finding, rows: Rows) -> bool:
    """Whether experts may differ on golden inputs only because two kernels broke a near tie differently.

    They do if the router logits that arrived were golden's, and the worst row's k-th and next logit are no further
    apart than the router's own error.
    """
    event = finding.onset
    router = next(((t, k) for t, k in _routers(golden) if t.key.site == finding.key.site), None)
    if router is None or finding.kind != "operator" or event is None or event.metrics.worst is None:
        return False
    table, k = router
    arrived = next((f for f in injected.findings if f.key == table.key), None)
    worst = event.metrics.worst
    at = np.flatnonzero((rows.of(table) == RowKey(worst.request, worst.sequence, worst.position)).all(axis=1))
    if arrived is None or arrived.error_class != "identical" or not len(at):
        return False
    error = _own_error(golden, table, injected) or 0.0
    return bool((top_k_gap(_read(table, at), k) <= error).any())


def _routers(index: PassIndex) -> Iterator[tuple[Table, int]]:
    """The tables of logits by which rows are sent to experts, each with how many experts a row is sent to."""
    for site in index.sites.values():
        k = _top_k(site)
        table = index.tables.get(TableKey(site.name, "in", LOGITS))
        if k is None or table is None or not len(table.ids):
            continue
        signature = table.signature()
        if signature is not None and signature[1] == site.config.get("num_experts", signature[1]) > k:
            yield table, k


def _top_k(site: Site) -> int | None:
    """How many experts a row goes to, if it goes to those with the largest logits."""
    k = site.config.get("top_k")
    return k if site.config.get("routing") == "top_k" and isinstance(k, int) and k > 0 else None


def _logits(table: Table, other: Table, exclusions: Sequence[Exclusion]) -> tuple[Array, Array] | None:
    """Golden's logits and those that arrived, of the rows that both have; None where they are no pair."""
    pairs = pair_rows(table, other)
    mine, theirs = table.signature(), other.signature()
    out = np.zeros(len(table.ids), bool)
    for exclusion in exclusions:
        excluded = exclusion(table)
        out |= False if excluded is None else excluded[1]
    keep = ~out[pairs.golden]
    if mine is None or theirs is None or mine[1] != theirs[1] or not keep.any():
        return None
    return _read(table, pairs.golden[keep]), _read(other, pairs.candidate[keep])


def _read(table: Table, picks: Ints) -> Array:
    return widen(gather(table, picks), table.tensors[0].dtype)


def _own_error(golden: PassIndex, table: Table, injected: Comparison | None) -> float | None:
    """The largest error of the operator that gives the logits, on golden inputs; None if it was not measured."""
    if injected is None:
        return None
    name = gate_of(golden, table)
    finding = next((f for f in injected.findings if f.key == TableKey(name, "out", 0) and f.rows), None)
    return None if finding is None else finding.metrics.max_abs
