"""``check`` on real engines: four rows under vLLM 0.32.0 in one start, a green and a red run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from check_rows import check_file
from engine_support import ROOT, Engines, find_engine
from junitparser import JUnitXml

from tracereplay.checks import check
from tracereplay.checks.engine import KeptEngine
from tracereplay.launch.home import home
from tracereplay.report.checks import junit, markdown
from tracereplay.trace import Trace

pytestmark = pytest.mark.engine


def test_an_upgrade_from_v0_is_held_up_and_one_start_serves_all_rows(
    engines: Engines, golden_v0: Trace, by_the_v1_runner: Trace, single_process: Mapping[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    engines.stop()
    for name, value in single_process.items():
        monkeypatch.setenv(name, value)
    file = check_file(tmp_path, golden_v0, by_the_v1_runner)
    with KeptEngine() as engine:
        green = check(file, only=["same*", "bit*", "from V0"], engine=engine)
        red = check(file, only=["*"], engine=engine)
        assert engine.starts == 1
    assert [r.outcome for r in green.results] == ["match", "match", "diverged"]
    assert (green.exit_code, green.unmet) == (0, ())
    assert [(r.check.name, r.outcome, r.met) for r in red.results] == [
        ("same engine", "match", True), ("bit for bit", "match", True), ("from V0", "diverged", True),
        ("from V0, tokens alone", "diverged", False),
    ]  # fmt: skip
    assert red.exit_code == 1
    suite = next(iter(JUnitXml.fromstring(junit.render(red).encode())))
    assert (suite.tests, suite.failures, suite.errors) == (4, 1, 0)
    assert len(markdown.render(red)) < 3_000


def test_the_worked_upgrade_from_0_18_to_0_32_is_green(
    engines: Engines, single_process: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines.stop()
    find_engine("v1-0.18"), find_engine("v1")
    (tmp_path / "home").mkdir()
    for shared in ("environments", "bytecode", "compiled"):  # as they are built already
        if (home() / shared).exists():
            (tmp_path / "home" / shared).symlink_to(home() / shared)
    monkeypatch.setenv("TRACEREPLAY_HOME", str(tmp_path / "home"))
    shutil.copytree(ROOT / "examples" / "upgrade", tmp_path / "examples" / "upgrade")
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    env = {**os.environ, **single_process, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env["GITHUB_STEP_SUMMARY"] = str(tmp_path / "summary.md")
    gate = [str(tmp_path / "examples" / "upgrade" / "gate.sh"), "--format", "github"]
    done = subprocess.run(gate, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "::notice title=tracereplay::2 checks: all as expected\n"
    assert (tmp_path / "summary.md").read_text().startswith(f"{markdown.MARK}\n### ✅")
