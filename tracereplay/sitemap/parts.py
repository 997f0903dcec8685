"""Where golden has a row of the candidate's: in one operator, side by side in several, or in a part of one."""

from __future__ import annotations

import numpy as np

from tracereplay.sitemap.pair import HeadOrder, Pair
from tracereplay.sitemap.translate import SiteMap
from tracereplay.trace.bases import Part, PartsOf

__all__ = ["parts_of"]


def parts_of(site_map: SiteMap) -> PartsOf:
    """The map as packing asks for it: of a site, side, index and numbers in a row, the parts of golden's row.

    A norm of the candidate's that is given the sum of x and residual is given what golden's hands on as the sum.
    """
    sums = site_map.given_sums

    def parts(site: str, side: str, index: int, width: int) -> list[Part]:
        pair = site_map.pairs.get(site)
        if pair is None:
            return []
        if site in sums and (side, index) == ("in", 0):
            return [Part(pair.golden[0], "out", 1)]
        if side != "out" or pair.relation is None:
            return [Part(pair.golden[0], side, index)]
        return _outputs(pair, index, width)

    return parts


def _outputs(pair: Pair, index: int, width: int) -> list[Part]:
    if pair.order is not None:
        return _reordered(pair.golden[0], pair.order, index, width)
    if pair.part is not None:
        number, shares = pair.part
        first = sum(shares[:number]) * width // shares[number]
        return [Part(pair.golden[0], "out", index, first, width)]
    return [Part(name, "out", index) for name in pair.golden]


def _reordered(site: str, order: HeadOrder, index: int, width: int) -> list[Part]:
    """Runs of numbers that follow each other in golden's output too."""
    if width != order.width:
        return []
    places = order.places()
    starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    counts = np.diff(starts, append=len(places))
    return [
        Part(site, "out", index, first, count)
        for first, count in zip(places[starts].tolist(), counts.tolist(), strict=True)
    ]
