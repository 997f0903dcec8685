"""Traces of the toy engine: a golden one and a replay of it whose engine rounds otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracereplay.engines import toy


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.record(toy.workload(), tmp_path_factory.mktemp("traces") / "golden.trace")


@pytest.fixture(scope="session")
def candidate(golden: Path) -> Path:
    return toy.replay(golden, golden.parent / "candidate.trace", rounding="truncate")
