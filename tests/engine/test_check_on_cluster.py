"""``check --ray`` and ``check --jobs`` on real engines: four rows under vLLM 0.32.0, two engines at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from check_rows import check_file
from engine_support import Engines
from ray_cluster import ray_cluster

from tracereplay.checks import Results, check
from tracereplay.launch.home import home
from tracereplay.trace import Trace

pytestmark = [pytest.mark.engine, pytest.mark.long]


FOUND = [
    ("same engine", "match", True, None),
    ("bit for bit", "match", True, None),
    ("from V0", "diverged", True, None),
    ("from V0, tokens alone", "diverged", False, None),
]


@pytest.fixture
def file(engines: Engines, golden_v0: Trace, by_the_v1_runner: Trace, tmp_path: Path) -> Path:
    engines.stop()
    return check_file(tmp_path, golden_v0, by_the_v1_runner)


def outcomes(results: Results) -> list[tuple[str, str, bool, str | None]]:
    return [(r.check.name, r.outcome, r.met, r.error) for r in results.results]


def rows_of(lines: list[str]) -> list[str]:
    return [line.partition(":")[0] for line in lines]


def test_four_rows_on_a_cluster_of_two_processors(file: Path, single_process: Mapping[str, str]) -> None:
    said: list[str] = []
    with ray_cluster({**single_process, "TRACEREPLAY_HOME": str(home())}) as address:
        results = check(file, ray=address, report=said.append)
    assert outcomes(results) == FOUND
    assert rows_of(said[:2]) == ["same engine", "from V0"]  # each half begins before the other is through


def test_four_rows_on_two_engines_here(
    file: Path, single_process: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in single_process.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    results = check(file, jobs=2, report=said.append)
    assert outcomes(results) == FOUND
    starts = [number for number, line in enumerate(said) if "Starting the engine" in line]
    assert rows_of([said[number] for number in starts]) in (["same engine", "from V0"], ["from V0", "same engine"])
    assert not any("match" in line for line in said[: starts[1]])
