"""How an experts' layer says that it chooses, over the versions of vLLM; the classes stand in for vLLM's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tracereplay.engines.vllm.guest.routing import routing_of


class FusedMoE(SimpleNamespace):
    """As up to 0.31: with the choice on the layer."""


class MoERunnerInterface(SimpleNamespace):
    pass


class MoERunner(MoERunnerInterface):
    """As from 0.32 on: with a router."""


PLAIN = {"top_k": 2, "use_grouped_topk": False, "e_score_correction_bias": None, "global_num_experts": 8}


def layers(**choice: Any) -> list[Any]:
    return [FusedMoE(**{**PLAIN, **choice}), MoERunner(router=SimpleNamespace(**{**PLAIN, **choice}))]


def test_the_largest_logits_choose() -> None:
    assert [routing_of(layer) for layer in layers()] == [{"top_k": 2, "num_experts": 8, "routing": "top_k"}] * 2


@pytest.mark.parametrize(
    "choice", [{"use_grouped_topk": True}, {"e_score_correction_bias": [0.0]}, {"custom_routing_function": max}]
)
def test_groups_biases_and_functions_choose_otherwise(choice: dict[str, Any]) -> None:
    assert [routing_of(layer)["routing"] for layer in layers(**choice)] == ["other"] * 2


def test_another_operator_has_no_routing() -> None:
    assert routing_of(SimpleNamespace(top_k=2)) == {}
