"""The program and the trace of a recorded command whose parent was killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cli_support import write
from program import Program

from tracereplay.trace import open_trace
from tracereplay.trace.manifest import write_manifest


@pytest.fixture
def orphaned(golden: Path) -> Path:
    """A trace as a parent leaves it that is killed right after it has started its command."""
    manifest = json.loads((golden / "manifest.json").read_text())
    manifest["run"] = {"kind": "recording", "level": "operator", "notes": []}
    manifest |= {"state": "incomplete", "passes": {}}
    (golden / "manifest.json").write_bytes(write_manifest(manifest))
    return golden


def test_each_verb_reads_it_or_says_what_is_missing(tracereplay: Program, orphaned: Path, tmp_path: Path) -> None:
    for words, codes in (
        (("show", orphaned), (0,)),
        (("verify", orphaned), (3,)),
        (("replay", orphaned, "--engine", "toy", "-o", tmp_path / "c1.trace"), (2, 5)),
        (("compare", orphaned, orphaned), (0, 3)),
        (("verify", orphaned, "--repair"), (3,)),
        (("show", orphaned), (0,)),
    ):
        ended = tracereplay(*words)
        assert ended.code in codes, (words, ended)
        assert "internal error" not in ended.err


def test_repair_says_what_it_finished(tracereplay: Program, orphaned: Path) -> None:
    ended = tracereplay("verify", orphaned, "--repair")
    assert ended.code == 3
    assert "Finished manifest.json." in ended.err
    assert "workload" in open_trace(orphaned).manifest["run"]


def test_a_command_without_an_engine_leaves_no_trace(tracereplay: Program, tmp_path: Path) -> None:
    out = tmp_path / "none.trace"
    ended = tracereplay("record", "-o", out, "--engine", "toy", "--", sys.executable, "-c", "print(1)")
    assert ended.code == 2
    assert "no engine of vLLM in it was recorded" in ended.err
    assert not out.exists()


def test_secrets_of_the_command_line_stay_out_of_the_trace(tracereplay: Program, tmp_path: Path) -> None:
    out, seen = tmp_path / "a.trace", tmp_path / "seen.json"
    program = write(
        tmp_path / "mine.py",
        "import os, shutil, sys; shutil.copy(os.environ['TRACEREPLAY_RECORD'] + '/manifest.json', sys.argv[1])\n",
    )
    words = [sys.executable, program, seen, "--api-key", "hunter2", "--hf-token=hunter3", "--port", "80"]
    tracereplay("record", "-o", out, "--engine", "toy", "--", *words)
    said = json.loads(seen.read_text())
    assert said["state"] == "incomplete"
    assert said["run"]["command"][3:] == ["--api-key", "...", "--hf-token=...", "--port", "80"]
    assert "hunter" not in seen.read_text()
