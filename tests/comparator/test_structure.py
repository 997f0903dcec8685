"""What is said of operators that two engines built in different ways."""

from __future__ import annotations

from tracereplay.comparator.judging.structure import built_otherwise
from tracereplay.event import Site


def test_configuration_that_both_recorded_and_that_differs_is_told() -> None:
    mine = Site("a.attn", "Attention", 1, config={"scale": 1.0, "heads": 4, "only_here": 1})
    theirs = Site("a.attn", "Attention", 2, config={"scale": 0.5, "heads": 4, "only_there": 1})
    assert built_otherwise(mine, theirs) == (("scale", 1.0, 0.5),)
    assert built_otherwise(None, theirs) == built_otherwise(mine, None) == ()


def test_the_name_of_an_operator_is_no_configuration() -> None:
    mine = Site("model.0.attn", "Attention", 1, config={"layer_name": "gpt_neox.0.attn", "scale": 1.0})
    theirs = Site("model.0.attn", "Attention", 2, config={"layer_name": "model.0.attn", "scale": 1.0})
    assert built_otherwise(mine, theirs) == ()
