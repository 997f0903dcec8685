"""A vision-language model under real vLLM V1: requests of text are recorded and replayed.

Environments for the CPU have no torchvision, without which vLLM takes no images: the tower is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from engine_support import Engines, greedy, random_model

from tracereplay.errors import WorkloadError

pytestmark = [pytest.mark.engine, pytest.mark.long]


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma of three layers behind a vision tower of two, with random weights."""
    out = tmp_path_factory.mktemp("models") / "paligemma"
    return random_model(out, "paligemma", "--preset", "zoo")


def test_requests_of_text_match_without_a_gap_in_the_census(
    engines: Engines, single_process: Mapping[str, str], paligemma: Path
) -> None:
    running = engines.start("v1", paligemma, single_process, language_model_only=True)
    golden = running.record(*greedy(24, 9, max_tokens=6), settings=running.settings)
    verdict = running.verdict(golden)
    assert verdict.verdict == "match", verdict.reasons
    assert {o.error_class for o in verdict.operators} == {"identical"}
    assert verdict.coverage.share == 1.0
    assert verdict.coverage.not_compared == ()
    census = verdict.coverage.census.golden
    assert census is not None
    assert census.unobserved == ()
    # Gemma's normaliser is used between operators, and shows at the input of the next one.
    between = {row.module for row in census.between}
    assert [p.name for p in census.parameters if not p.users or not between.issuperset(p.users)] == []


def test_an_environment_without_torchvision_is_told_in_a_sentence(
    engines: Engines, single_process: Mapping[str, str], paligemma: Path
) -> None:
    with pytest.raises(WorkloadError, match="language_model_only=true") as raised:
        engines.start("v1", paligemma, single_process)
    assert "\n" not in str(raised.value)
