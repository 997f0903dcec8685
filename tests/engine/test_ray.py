"""Engines in actors of a real cluster of Ray on this machine: one trace, merged, which a replay matches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_support import TINY, Engines, find_engine
from ray_cluster import quiet_ray, ray_head

sys.path.insert(0, str(Path(__file__).parent))

from recorded_server import tokens_of

from tracereplay.engines.known import DEFAULT, family_named
from tracereplay.launch.home import home
from tracereplay.launch.overlay import overlay_for
from tracereplay.trace import open_trace
from tracereplay.trace.verify import verify

pytestmark = pytest.mark.engine

ENGINE = "v1-ray"


@pytest.fixture
def quiet() -> Iterator[Mapping[str, str]]:
    with quiet_ray() as variables:
        yield variables


@pytest.fixture
def cluster(engines: Engines, quiet: Mapping[str, str]) -> Iterator[str]:
    """The address of a cluster that was there before: its processes know nothing of a recording."""
    python = find_engine(ENGINE).python
    engines.stop()
    with ray_head([str(python.parent / "ray")], quiet, "--num-cpus", "4") as address:
        yield address


def drive(address: str, trace: Path, quiet: Mapping[str, str]) -> dict[str, Any]:
    """What ray_driver.py prints."""
    engine = find_engine(ENGINE)
    entry_points = family_named(DEFAULT).entry_points
    assert entry_points is not None
    done = subprocess.run(
        [str(engine.python), str(Path(__file__).parent / "ray_driver.py"), address, ENGINE, str(trace), str(TINY)],
        env={
            **os.environ, **quiet, "PYTHONPATH": str(overlay_for(engine.python, entry_points)),
            "TRACEREPLAY_HOME": str(home()),
        },
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_engines_of_actors_write_one_trace(
    cluster: str, quiet: Mapping[str, str], tmp_path: Path, engines: Engines, single_process: Mapping[str, str]
) -> None:
    path = tmp_path / "golden.trace"
    told = drive(cluster, path, quiet)
    trace = open_trace(path)
    assert told["complete"]
    assert trace.complete
    assert {report.state for report in verify(trace)} == {"complete"}
    assert trace.engines("record") == ("record", "record-engine1")
    assert trace.joined("record") == ("record", "record-engine1")
    recorded = [(list(prompt), tokens) for prompt, tokens, _ in tokens_of(trace)]
    assert recorded == [(prompt, tokens) for prompt, tokens in told["answers"]]
    assert len(told["after"]) == 2  # generated when the recording had ended
    assert [request.identity.reason for request in trace.requests] == ["length"] * 4
    verdict = engines.start("v1", env=single_process).verdict(trace)
    assert verdict.verdict == "match", verdict.reasons
    assert verdict.coverage.share == 1.0
