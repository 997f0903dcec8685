"""Names are told once where they repeat, and in full where they differ."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracereplay.report.names import grouped, listed

LAYER = "model.layers.{}.input_layernorm"


def test_layers_are_told_as_a_range_with_their_number() -> None:
    assert listed(LAYER.format(n) for n in range(5)) == "model.layers.{0..4}.input_layernorm (5)"


@pytest.mark.parametrize(
    ("numbers", "span"),
    [((3,), "3"), ((0, 1), "{0,1}"), ((0, 2), "{0,2}"), ((0, 1, 2, 7), "{0..2,7}"), ((9, 10, 11), "{9..11}")],
)
def test_gaps_are_seen(numbers: tuple[int, ...], span: str) -> None:
    assert grouped(LAYER.format(n) for n in numbers)[0].pattern == f"model.layers.{span}.input_layernorm"


def test_names_that_differ_otherwise_stay_apart_in_the_order_of_the_first() -> None:
    names = ["model.norm", LAYER.format(0), "model.layers.0.mlp.act_fn", LAYER.format(1)]
    assert listed(names) == "model.norm, model.layers.{0,1}.input_layernorm (2), model.layers.0.mlp.act_fn"
    assert listed(names, 1) == "model.norm and 3 more"


def test_a_pattern_of_two_numbers_says_no_more_than_there_is() -> None:
    every = [f"layers.{n}.experts.{e}.act" for n in range(2) for e in range(3)]
    assert [group.words for group in grouped(every)] == ["layers.{0,1}.experts.{0..2}.act (6)"]
    some = every[:-1]
    assert [group.words for group in grouped(some)] == [
        "layers.0.experts.{0..2}.act (3)", "layers.1.experts.{0,1}.act (2)",
    ]  # fmt: skip


def test_control_characters_are_escaped() -> None:
    assert listed(["a\x1b.0", "a\x1b.1"]) == "a\\x1b.{0,1} (2)"


parts = st.sampled_from(["model", "0", "1", "2", "10", "007", "x", ""])


@settings(deadline=None)
@given(st.lists(st.lists(parts, min_size=1, max_size=4).map(".".join), max_size=12))
def test_no_name_is_lost_or_told_twice(names: list[str]) -> None:
    groups = grouped(names)
    assert sorted(name for group in groups for name in group.names) == sorted(set(names))
    for group in groups:
        if len(group.names) == 1:
            assert group.pattern == group.names[0]
        for name in group.names:
            glob = "".join("*" if depth else c for c, depth in _depths(group.pattern))
            assert fnmatchcase(name, glob)


def _depths(pattern: str) -> list[tuple[str, bool]]:
    inside, found = False, []
    for c in pattern:
        inside = (inside or c == "{") and c != "}"
        if c not in "{}" or c == "{":
            found.append((c, inside))
    return found
