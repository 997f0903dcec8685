"""Maps golden's operators to the candidate's, across engines' naming schemes.

It is imported in the engine's process, which knows only its own family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tracereplay.event import Site
from tracereplay.sitemap import SiteMap, pair_sites

__all__ = ["BY_HEADS", "SPELLINGS", "map_of"]

# Spellings of parts of names; the first stands for all. Used last, for operators that neither names, tensors nor
# order have paired: those without weights, where one engine has more of them.
SPELLINGS = (
    # the module of a decoder
    (".model.", ".gpt_neox.", ".transformer.", ".language_model.model.", ".model.language_model."),
    (".layers.", ".h.", ".blocks."),
    # the module of attention: newer engines wrap DeepSeek's
    (".self_attn.", ".self_attn.mla_attn.", ".attention.", ".self_attention."),
    (".mlp.", ".feed_forward."),
)

# Tensors of the checkpoint that hold q, k and v head by head. An engine's own models reorder them as they load
# them; models of transformers that it runs do not.
BY_HEADS = ("gpt_neox.layers.*.attention.query_key_value.weight",)


def map_of(golden: Mapping[str, Site], candidate: Iterable[Site]) -> SiteMap:
    """The site map of a pass of golden's.

    Args:
        golden: its sites, with their roles (`engines.roles.with_roles`).
        candidate: the candidate's sites, with their roles, in the order of its model.
    """
    return pair_sites(golden, {site.name: site for site in candidate}, SPELLINGS, BY_HEADS)
