"""Recordings that are killed at random moments lose no step that the writer said it had written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from engine_support import find_engine

from tracereplay.launch.process import guest_environment

pytestmark = pytest.mark.engine

SCRIPT = Path(__file__).parent / "killed_recordings.py"
COUNT = 200


def test_no_acknowledged_step_is_lost_by_a_kill() -> None:
    engine = find_engine("v1")
    command = [str(engine.python), str(SCRIPT), str(COUNT), "0"]
    done = subprocess.run(command, env=guest_environment(engine), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    totals = json.loads(done.stdout.splitlines()[-1])
    assert totals["recordings"] == COUNT
    assert totals["committed"] >= totals["acknowledged"] > COUNT
    assert min(totals[kind] for kind in ("engine", "writer", "both")) > COUNT // 8
