"""A request that its client gave up is replayed as far as it was recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from engine_support import Running, greedy

from tracereplay.trace import open_trace
from tracereplay.trace.manifest import write_manifest

pytestmark = pytest.mark.engine


def test_an_aborted_request_is_replayed_to_the_length_that_it_had(v1: Running, tmp_path: Path) -> None:
    golden = v1.record(*greedy(9, max_tokens=4), *greedy(5, max_tokens=7))
    path = Path(shutil.copytree(golden.path, tmp_path / "server.trace"))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["passes"] = {}  # as a recorded command leaves it
    for prompt in manifest["run"]["workload"]["prompts"]:
        prompt["sampling"]["max_tokens"] = 40
    (path / "manifest.json").write_bytes(write_manifest(manifest))
    candidate = v1.replay(open_trace(path))
    for name in ("rerun", "injected"):
        assert [len(r["token_ids"]) for r in candidate.results[name]["requests"]] == [4, 7]
        assert {s.number for s in candidate.steps(name)} == {s.number for s in golden.steps("record")}
