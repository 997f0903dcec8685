"""``tracereplay ray``: what a job is given, and completing what it recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from program import Program

from tracereplay.trace import open_trace


def test_a_job_is_given_an_environment_and_its_trace_completed(
    tracereplay: Program, golden: Path, model: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "job.trace"
    ended = tracereplay("ray", "env", "-o", out, "--sites", "model.*", "--every", "2")
    assert ended.code == 0, ended.err
    env = json.loads(ended.out)["env_vars"]
    assert env["TRACEREPLAY_RECORD"] == str(out)
    assert json.loads(env["TRACEREPLAY_OPTIONS"])["sites"] == ["model.*"]
    shutil.copy(golden / "record-rank0.seg", out)
    ended = tracereplay("ray", "finish", out)
    assert ended.code == 0, ended.err
    assert ended.err.startswith("Recorded ")
    assert open_trace(out).complete
    words = ("record", "--engine", "toy", "--model", model, "--prompts", prompts, "-o", out, "--force")
    assert tracereplay(*words).code == 0  # nothing is in the way of another
    assert not (out / ".ended").exists()


def test_what_is_lacking_is_said(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    out = tmp_path / "job.trace"
    tracereplay("ray", "env", "-o", out)
    assert tracereplay("ray", "env", "-o", out).code == 2
    data = (golden / "record-rank0.seg").read_bytes()
    (out / "record-rank0.seg").write_bytes(data[: len(data) * 7 // 10])
    ended = tracereplay("ray", "finish", out, "--timeout", "0.1")
    assert ended.code == 4
    assert "its engine was ended before the recording was" in ended.err
    tracereplay("ray", "env", "-o", tmp_path / "nobody.trace")
    ended = tracereplay("ray", "finish", tmp_path / "nobody.trace")
    assert (ended.code, (tmp_path / "nobody.trace").exists()) == (2, False)
    assert "No engine of vLLM was recorded" in ended.err
