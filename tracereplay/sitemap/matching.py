"""Pairs the sites of two engines: by name, by the checkpoint's tensors, by role, order and shape, by a table.

Each way takes what the ones before it left. Only sites are asked, which are known before anything runs: the engine
that is fed and the comparison afterwards must come to the same map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import lcm

from tracereplay.event import Layout, Site
from tracereplay.sitemap.pair import HeadOrder, Pair, PairedBy, outputs_of, weight_of
from tracereplay.sitemap.translate import SiteMap

__all__ = ["pair_sites"]

_UNTOLD = ("", "other")  # roles that say nothing of what an operator does
_JOINED = "linear"  # the role of what engines fuse: linear maps of the same input
_HEADS = "num_kv_heads"  # in the configuration of what gives q, k and v one after another

OTHER_ORDER = "the candidate's operator gives the same outputs in another order"


def pair_sites(
    golden: Mapping[str, Site], candidate: Mapping[str, Site], spellings: Sequence[Sequence[str]] = (),
    by_heads: Sequence[str] = (),
) -> SiteMap:  # fmt: skip
    """The map of two passes' sites, which have their roles.

    Args:
        golden, candidate: in the order of the model.
        spellings: the table: parts of names, each in all its spellings.
        by_heads: patterns of the checkpoint's tensors that hold q, k and v head by head.
    """
    pairing = _Pairing(golden, candidate, by_heads)
    pairing.by_name()
    pairing.by_tensors()
    pairing.by_shape()
    pairing.by_table(spellings)
    return SiteMap(golden, candidate, pairing.found, pairing.apart)


class _Pairing:
    """What is paired so far, and what is left on both sides."""

    def __init__(
        self, golden: Mapping[str, Site], candidate: Mapping[str, Site], by_heads: Sequence[str] = ()
    ) -> None:
        self._golden, self._candidate = dict(golden), dict(candidate)
        self._by_heads = by_heads
        self.found: dict[str, Pair] = {}
        self.apart: dict[str, str] = {}

    def by_name(self) -> None:
        for name in [name for name in self._candidate if name in self._golden]:
            pair = Pair(name, (name,), None, "name")
            self._take_in_order(pair, [self._golden[name]], [self._candidate[name]])

    def by_tensors(self) -> None:
        """Operators that hold the same tensors of the checkpoint."""
        for role in self._roles():
            mine, theirs = (
                [site for site in left.values() if site.role == role and weight_of(site)] for left in self._left
            )
            for group in _sharing(mine, theirs):
                for pair in _of_group(*group):
                    self._take_in_order(pair, *group)

    def by_shape(self) -> None:
        """The first of a role with the first, and so on, where both sides have as many, and nothing speaks
        against it."""
        for role in self._roles():
            if role in _UNTOLD:
                continue
            mine, theirs = ([s for s in left.values() if s.role == role] for left in self._left)
            if len(mine) == len(theirs) and all(map(_alike, mine, theirs)):
                self._rename(mine, theirs, "shape")

    def by_table(self, spellings: Sequence[Sequence[str]]) -> None:
        """Those whose names are one name in two spellings."""
        known = [_spelled(left.values(), spellings) for left in self._left]
        for name, site in known[0].items():
            other = known[1].get(name)
            if site is not None and other is not None and site.role == other.role:
                self._rename([site], [other], "table")

    @property
    def _left(self) -> tuple[dict[str, Site], dict[str, Site]]:
        return self._golden, self._candidate

    def _roles(self) -> list[str]:
        return list(dict.fromkeys(site.role for site in self._candidate.values()))

    def _rename(self, mine: Sequence[Site], theirs: Sequence[Site], by: PairedBy) -> None:
        for site, other in zip(mine, theirs, strict=True):
            self._take(Pair(other.name, (site.name,), "rename", by))

    def _take_in_order(self, pair: Pair, mine: Sequence[Site], theirs: Sequence[Site]) -> None:
        """Takes it if both give their outputs in one order, or in two that are known."""
        if _in_one_order(mine, theirs):
            self._take(pair)
        elif order := _head_order(mine[0], theirs[0], self._by_heads):
            self._take(replace(pair, relation="reorder", order=order))
        else:
            self._leave(pair)

    def _leave(self, pair: Pair) -> None:
        """Keeps what is known to be no pair from being taken for one in another way."""
        self._candidate.pop(pair.site, None)
        for name in pair.golden:
            self._golden.pop(name, None)
            self.apart[name] = OTHER_ORDER

    def _take(self, pair: Pair) -> None:
        self.found[pair.site] = pair
        self._candidate.pop(pair.site, None)
        for name in pair.golden:
            self._golden.pop(name, None)


def _tensors(site: Site) -> tuple[str, ...]:
    weight = weight_of(site)
    return weight.tensors if weight else ()


def _sharing(mine: Sequence[Site], theirs: Sequence[Site]) -> Iterator[tuple[list[Site], list[Site]]]:
    """Groups of both sides' sites that have tensors in common; each site is in one."""
    sites = [*mine, *theirs]
    holders: dict[str, list[int]] = {}
    for number, site in enumerate(sites):
        for name in _tensors(site):
            holders.setdefault(name, []).append(number)
    seen: set[int] = set()
    for number in range(len(sites)):
        group: set[int] = set()
        waiting = [number]
        while waiting:
            other = waiting.pop()
            if other not in seen:
                seen.add(other)
                group.add(other)
                waiting += [holder for name in _tensors(sites[other]) for holder in holders[name]]
        if group:
            ours = [sites[i] for i in sorted(group) if i < len(mine)]
            yield ours, [sites[i] for i in sorted(group) if i >= len(mine)]


def _of_group(mine: list[Site], theirs: list[Site]) -> list[Pair]:
    """The pairs of sites that share tensors; none where neither side holds the other's parts whole."""
    if len(mine) == len(theirs) and len({frozenset(_tensors(site)) for site in (*mine, *theirs)}) == 1:
        return [
            Pair(other.name, (site.name,), "rename", "tensors") for site, other in zip(mine, theirs, strict=True)
        ]
    if len(theirs) == 1 and (parts := _parts(theirs[0], mine)) is not None and _laid_out(parts):
        return [Pair(theirs[0].name, tuple(site.name for site in parts), "join", "tensors")]
    if len(mine) == 1 and (parts := _parts(mine[0], theirs)) is not None and (shares := _shares(mine[0], parts)):
        return [
            Pair(site.name, (mine[0].name,), "join", "tensors", (number, shares))
            for number, site in enumerate(parts)
        ]
    return []


def _in_one_order(mine: Sequence[Site], theirs: Sequence[Site]) -> bool:
    """Whether both sides give the outputs of a weight in one order.

    A checkpoint may hold q, k and v of all heads in one tensor, head by head. An operator that knows of key and
    value heads gives q, k and v one after another: its engine reordered the tensor as it loaded it. An operator
    that does not gives them as they are stored.
    """
    if len(mine) != 1 or len(theirs) != 1 or len(_tensors(mine[0])) != 1:
        return True
    return len({_HEADS in site.config for site in (mine[0], theirs[0])}) == 1


def _head_order(mine: Site, theirs: Site, by_heads: Sequence[str]) -> HeadOrder | None:
    """How to reorder golden's outputs; None where the checkpoint's order is not known, or ranks cut them."""
    reordered = mine if _HEADS in mine.config else theirs
    known = [reordered.config.get(key) for key in ("num_heads", _HEADS, "head_size")]
    if not any(fnmatchcase(_tensors(mine)[0], pattern) for pattern in by_heads) or mine.layouts or theirs.layouts:
        return None
    counts = [n for n in known if isinstance(n, int) and n > 0]  # a trace may say anything
    if len(counts) < len(known) or counts[0] % counts[1]:
        return None
    heads, kv_heads, size = counts
    return HeadOrder(kv_heads, heads // kv_heads, size, golden_stored=reordered is theirs)


def _parts(whole: Site, sites: Sequence[Site]) -> list[Site] | None:
    """``sites`` in the order in which ``whole`` joins them; None if it does not join just these."""
    order = _tensors(whole)
    if whole.role != _JOINED or len(sites) < 2 or any(_tensors(site)[0] not in order for site in sites):
        return None
    parts = sorted(sites, key=lambda site: order.index(_tensors(site)[0]))
    return parts if tuple(name for site in parts for name in _tensors(site)) == order else None


def _laid_out(parts: Sequence[Site]) -> bool:
    """Whether it is known how ranks cut a joined output: none is cut, or all are and their sizes are known."""
    layouts = [site.layouts.get("out0") for site in parts]
    if not any(layouts):
        return True
    pairs = zip(layouts, map(outputs_of, parts), strict=True)
    return all(layout and size and _sound(layout) and not size % sum(layout.parts) for layout, size in pairs)


def _sound(layout: Layout) -> bool:
    """A trace may say anything."""
    return 0 < len(layout.parts) == len(layout.copies) and all(n > 0 for n in (*layout.parts, *layout.copies))


def _shares(whole: Site, parts: Sequence[Site]) -> tuple[int, ...]:
    """In which proportions the parts lie side by side in golden's output; empty if that is not known.

    A rank holds a part whole that several ranks have a copy of, and its own piece of the others.
    """
    layout = whole.layouts.get("out0")
    if layout is not None:
        return layout.parts if _sound(layout) and len(layout.parts) == len(parts) else ()
    sizes = [size for site in parts if (size := outputs_of(site))]
    layouts = [layout for site in parts if (layout := site.layouts.get("out0"))]
    if len(sizes) < len(parts) or len(layouts) not in (0, len(parts)) or not all(map(_sound, layouts)):
        return ()
    copies = [layout.copies[0] for layout in layouts] or [1] * len(parts)
    every = lcm(*copies)
    return tuple(size * every // of for size, of in zip(sizes, copies, strict=True))


def _alike(mine: Site, theirs: Site) -> bool:
    """Whether nothing that is known of two sites of one role speaks against their being one operator."""
    if _tensors(mine) and _tensors(theirs):
        return False  # they hold other weights, or they would have been paired by them
    shapes = [sorted(parameter.shape for parameter in site.parameters) for site in (mine, theirs)]
    if all(shapes) and shapes[0] != shapes[1]:
        return False
    inputs = [len(site.inputs) for site in (mine, theirs)]
    return mine.role == "norm" or not all(inputs) or inputs[0] == inputs[1]


def _spelled(sites: Iterable[Site], spellings: Sequence[Sequence[str]]) -> dict[str, Site | None]:
    """Sites by their names in the first spelling of each part; None where two have one name."""
    found: dict[str, Site | None] = {}
    for site in sites:
        name = f".{site.name}"
        for first, *others in spellings:
            longest = max((spelling for spelling in others if spelling in name), key=len, default=first)
            name = name.replace(longest, first)
        found[name] = None if name in found else site
    return found
