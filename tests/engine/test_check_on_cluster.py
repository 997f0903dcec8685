"""``check --ray`` on real engines: four rows under vLLM 0.32.0 on a cluster of two processors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from engine_support import TINY, Engines
from ray_cluster import ray_cluster

from tracereplay.checks import check
from tracereplay.launch.home import home
from tracereplay.trace import Trace

pytestmark = [pytest.mark.engine, pytest.mark.long]

ROWS = """
[defaults]
engine = "v1"
model = "{model}"

[[check]]
name = "same engine"
golden = "{v1}"

[[check]]
name = "bit for bit"
golden = "{v1}"
policy = "strict"

[[check]]
name = "from V0"
golden = "{v0}"
expect = "diverged"
cause = "rounding"

[[check]]
name = "from V0, tokens alone"
golden = "{v0}"
mode = "rerun"
"""


def test_four_rows_on_two_processors(
    engines: Engines, golden_v0: Trace, by_the_v1_runner: Trace, single_process: Mapping[str, str], tmp_path: Path
) -> None:
    engines.stop()
    file = tmp_path / "checks.toml"
    file.write_text(ROWS.format(model=TINY, v1=by_the_v1_runner.path, v0=golden_v0.path))
    said: list[str] = []
    with ray_cluster({**single_process, "TRACEREPLAY_HOME": str(home())}) as address:
        results = check(file, ray=address, report=said.append)
    found = [(r.check.name, r.outcome, r.met, r.error) for r in results.results]
    assert found == [
        ("same engine", "match", True, None), ("bit for bit", "match", True, None),
        ("from V0", "diverged", True, None), ("from V0, tokens alone", "diverged", False, None),
    ]  # fmt: skip
    # Both engines begin before either is through: the first two lines are of the first row of each half.
    assert [line.partition(":")[0] for line in said[:2]] == ["same engine", "from V0"]
