"""Packing finds golden's rows where another engine has them, and pairs the same numbers of a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tracereplay.engines import toy
from tracereplay.engines.naming import map_of
from tracereplay.event import Site
from tracereplay.sitemap import SiteMap, parts_of
from tracereplay.sitemap.pair import HeadOrder, Pair
from tracereplay.trace import open_trace
from tracereplay.trace.bases import Part
from tracereplay.trace.into_pack import pack_trace


def joined(parts: Sequence[Part], rows: dict[str, list[int]]) -> list[int]:
    """The row that the parts of golden's rows make."""
    found: list[int] = []
    for part in parts:
        whole = rows[part.site]
        found += whole[part.first : None if part.count is None else part.first + part.count]
    return found


def mapped(*pairs: Pair) -> SiteMap:
    sites = {name: Site(name, "Linear", 0) for pair in pairs for name in (pair.site, *pair.golden)}
    return SiteMap(sites, sites, {pair.site: pair for pair in pairs})


def test_parts_of_a_joined_output_are_golden_s_one_after_the_other() -> None:
    parts = parts_of(mapped(Pair("qkv", ("q", "k", "v"), "join", "tensors")))
    assert joined(parts("qkv", "out", 0, 7), {"q": [0, 1, 2, 3], "k": [4], "v": [5, 6]}) == list(range(7))
    assert parts("qkv", "in", 0, 4) == [Part("q", "in", 0)]
    assert parts("other", "out", 0, 4) == []


def test_a_part_is_cut_out_of_golden_s_joined_output() -> None:
    shares = (4, 1, 1)
    pairs = [Pair(n, ("qkv",), "join", "tensors", (i, shares)) for i, n in enumerate("qkv")]
    parts = parts_of(mapped(*pairs))
    rows = {"qkv": list(range(12))}
    found = [joined(parts(name, "out", 0, width), rows) for name, width in (("q", 8), ("k", 2), ("v", 2))]
    assert found == [list(range(8)), [8, 9], [10, 11]]


@pytest.mark.parametrize("stored", [True, False])
def test_heads_in_another_order_are_cut_as_the_comparison_reorders_them(stored: bool) -> None:
    order = HeadOrder(kv_heads=2, queries=2, size=3, golden_stored=stored)
    parts = parts_of(mapped(Pair("qkv", ("qkv",), "reorder", "name", None, order)))
    assert (
        joined(parts("qkv", "out", 0, order.width), {"qkv": list(range(order.width))}) == order.places().tolist()
    )
    assert parts("qkv", "out", 0, order.width + 1) == []


@pytest.mark.parametrize(("mine", "theirs"), [("split", "fused"), ("fused", "split")])
def test_a_candidate_of_another_naming_is_packed_as_small(
    tmp_path: Path, mine: toy.Naming, theirs: toy.Naming
) -> None:
    golden = toy.record(toy.workload(), tmp_path / "golden.trace", naming=mine)
    base = open_trace(golden)
    sizes = {}
    for naming in (mine, theirs):
        path = toy.replay(golden, tmp_path / f"{naming}.trace", rounding="truncate", naming=naming, max_rows=3)
        candidate, out = open_trace(path), path.with_suffix(".pack")
        pack_trace(
            candidate, out, base=base,
            counterparts=lambda golden, candidate: parts_of(map_of(golden, candidate.values())),
        )  # fmt: skip
        assert open_trace(out, base).digest() == candidate.digest()
        sizes[naming] = out.stat().st_size / candidate.size
    assert sizes[theirs] < 1.4 * sizes[mine] < 0.6
