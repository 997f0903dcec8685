"""What of golden is what of the candidate, for two traces or for a trace and a running engine."""

from __future__ import annotations

from collections.abc import Iterable

from tracereplay.engines.known import family_of
from tracereplay.engines.roles import with_roles
from tracereplay.engines.spellings import SPELLINGS
from tracereplay.event import Site
from tracereplay.sitemap import SiteMap, pair_sites
from tracereplay.trace import Trace

__all__ = ["map_of", "sites_of"]


def sites_of(trace: Trace, name: str) -> dict[str, Site]:
    """The sites of a pass by name, each with its role."""
    rank = next(iter(trace.ranks(name)), 0)
    return with_roles(trace.sites(name, rank), family_of(trace.run.engine))


def map_of(golden: Trace, name: str, candidate: Iterable[Site]) -> SiteMap:
    """The map of a pass of golden's.

    Args:
        golden: an open trace.
        name: of its pass.
        candidate: the candidate's sites, with their roles, in the order of its model.
    """
    return pair_sites(sites_of(golden, name), {site.name: site for site in candidate}, SPELLINGS)
