"""Experts that are given router logits in one engine and run the router themselves in the other.

    golden       gate ─▶ logits ─▶ experts(x, logits)
    candidate    experts(x, x):  gate ─▶ logits, inside

The candidate's experts are given hidden states once more in place of logits. What their gate gives is then what
arrives at the choice of experts, and is compared with golden's logits. The gate has a tap of its own: in an
injected pass it is fed, and what it gives is replaced by golden's. So the experts choose by golden's logits, as
they would if they were given them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tracereplay.comparator.numbers.tables import PassIndex, Table, TableKey

__all__ = ["LOGITS", "by_gates", "gate_of", "gated_inside"]

LOGITS = 1  # input of the experts' layer: hidden states, router logits


def by_gates(golden: PassIndex, candidate: PassIndex, *, fed: bool) -> PassIndex:
    """The candidate's pass with logits as the input of experts that make them; as it is without any such.

    Args:
        golden: a pass in the candidate's naming.
        candidate: the other.
        fed: whether it was fed golden's inputs. What the gate gave was then replaced before the experts saw it:
            golden's logits arrived, and the gate's error is its own and not theirs.
    """
    found = gated_inside(golden, candidate)
    arrived = {key: golden.tables[key] if fed else given for key, given in found.items()}
    return replace(candidate, tables={**candidate.tables, **arrived}) if found else candidate


def gated_inside(golden: PassIndex, candidate: PassIndex) -> Mapping[TableKey, Table]:
    """By the input that golden has logits at, what the gate gives that the candidate's experts run themselves."""
    found = {}
    for site in golden.sites.values():
        key = TableKey(site.name, "in", LOGITS)
        mine, theirs = golden.tables.get(key), candidate.tables.get(key)
        hidden = candidate.tables.get(TableKey(site.name, "in", 0))
        if site.role != "experts" or mine is None or theirs is None or hidden is None:
            continue
        if not _width(mine) or _width(mine) == _width(theirs) or _width(theirs) != _width(hidden):
            continue
        given = candidate.tables.get(TableKey(gate_of(golden, mine), "out", 0))
        if given is not None and _width(given) == _width(mine):
            found[key] = replace(given, key=key)
    return found


def gate_of(golden: PassIndex, table: Table) -> str:
    """The site beside the experts whose output is as wide as their logits, ``table``; the last before them."""
    parent = table.key.site.rpartition(".")[0]
    first = golden.calls.first
    beside = [
        key.site
        for key, output in golden.tables.items()
        if (key.side, key.index) == ("out", 0) and key.site.rpartition(".")[0] == parent
        and _width(output) == _width(table)
        and first[key.site] < first[table.key.site]
    ]  # fmt: skip
    return max(beside, key=lambda site: first[site], default="")


def _width(table: Table) -> int | None:
    signature = table.signature()
    return None if signature is None else signature[1]
