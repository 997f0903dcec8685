"""Which of golden's operators is which of the candidate's, and golden's steps in the candidate's naming.

    two sides' sites ──pair_sites──▶ SiteMap: a Pair for each site of the candidate's that golden has
    golden's steps   ──SiteMap.step──▶ steps whose calls are named, joined and cut as the candidate's

Two engines name the same operator otherwise, and fuse what the other has apart. All that reads golden beside a
candidate (feeding, cancelling, comparing) reads it through the map, and sees one naming. Sums are no part of a
step: whether a norm was given x and residual or their sum shows in its calls, and each reader knows them at once
(`comparator.numbers.sums`, `replayer.tables`).

Both sides of the boundary make the map, of the sites alone, so that what is compared is what was fed.
"""

from tracereplay.sitemap.matching import pair_sites
from tracereplay.sitemap.pair import Pair, PairedBy, Relation
from tracereplay.sitemap.parts import parts_of
from tracereplay.sitemap.translate import SiteMap

__all__ = ["Pair", "PairedBy", "Relation", "SiteMap", "pair_sites", "parts_of"]
