"""Golden recordings of the toy engine, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tracereplay.comparator import Policy, compare_traces
from tracereplay.engines import toy
from tracereplay.verdict import Verdict


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.record(toy.workload(max_tokens=5), tmp_path_factory.mktemp("golden") / "golden.trace")


@pytest.fixture
def judge(golden: Path, tmp_path: Path) -> Callable[..., Verdict]:
    """Replays the golden recording with the toy engine's options, and compares."""

    def replayed(policy: Policy | None = None, *, of: Path = golden, **options: Any) -> Verdict:
        candidate = toy.replay(of, tmp_path / f"candidate{len(list(tmp_path.iterdir()))}.trace", **options)
        return compare_traces(of, candidate, policy)

    return replayed
