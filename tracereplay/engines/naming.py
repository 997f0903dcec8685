"""What of golden's operators is what of the candidate's, whatever engines call them.

An engine's process imports this: it knows its own family, and not the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tracereplay.event import Site
from tracereplay.sitemap import SiteMap, pair_sites

__all__ = ["SPELLINGS", "map_of"]

# Parts of names, each in all its spellings, the first of which stands for it. Asked last, of what neither names,
# tensors nor order have paired: operators without weights, where one engine runs more of their kind.
SPELLINGS = (
    # what holds a decoder
    (".model.", ".gpt_neox.", ".transformer.", ".language_model.model.", ".model.language_model."),
    (".layers.", ".h.", ".blocks."),
    # what holds attention: in newer engines, DeepSeek's is in a wrapper of its own
    (".self_attn.", ".self_attn.mla_attn.", ".attention.", ".self_attention."),
    (".mlp.", ".feed_forward."),
)


def map_of(golden: Mapping[str, Site], candidate: Iterable[Site]) -> SiteMap:
    """The map of a pass of golden's.

    Args:
        golden: its sites, with their roles (`engines.roles.with_roles`).
        candidate: the candidate's sites, with their roles, in the order of its model.
    """
    return pair_sites(golden, {site.name: site for site in candidate}, SPELLINGS)
