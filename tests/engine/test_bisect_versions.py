"""The first bad release, found by building environments; a plugin plants the fault from one release on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from engine_support import FAULTS, Engines, find_engine

from tracereplay.bisector.versions import bisect_versions
from tracereplay.trace import Trace

pytestmark = pytest.mark.engine

FAULT, SITE, SINCE = "other_activation", "model.layers.3.mlp.act_fn", "0.31.0"
# Two of them are there already, so that one environment is built; benchmarks/bisection.py walks all releases.
VERSIONS = ["0.27.1", "0.31.0", "0.32.0"]


@pytest.mark.long
def test_the_release_from_which_on_a_fault_is_there_is_named(
    engines: Engines, golden_v1: Trace, plant: Callable[[str], None], fault_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    find_engine("v1")
    engines.stop()
    plant(FAULT)
    variables = {
        "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file),
        "TRACEREPLAY_TEST_FAULT_SINCE": SINCE, "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    verdict = bisect_versions(golden_v1.path, tmp_path / "work", good="0.27.1", bad="0.32.0", versions=VERSIONS)
    assert verdict.bisection is not None
    assert verdict.bisection.first_bad == SINCE
    assert verdict.bisection.proven
    assert verdict.first_divergence is not None
    assert verdict.first_divergence.site == SITE
    assert verdict.bisection.last_good == "0.27.1"
