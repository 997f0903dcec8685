"""What a trace may ask for by itself reaches a real engine, and is what the engine says that it has."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from engine_support import GOLDEN, TINY, find_engine

from tracereplay.launch import jobs
from tracereplay.trace import open_trace
from tracereplay.trace.manifest import write_manifest

pytestmark = pytest.mark.engine

ASKED = {
    "enforce_eager": True, "dtype": "float32", "max_model_len": 320, "max_num_seqs": 3,
    "max_num_batched_tokens": 320,
    "enable_prefix_caching": False, "seed": 7, "logprobs_mode": "processed_logprobs",
    "compilation_config": {"custom_ops": ["none"]}, "load_format": "safetensors",
}  # fmt: skip


def test_a_trace_may_ask_for_numbers_and_choices(tmp_path: Path) -> None:
    engine = find_engine("v1")
    golden = tmp_path / "golden.trace"
    shutil.copytree(GOLDEN, golden)
    manifest = json.loads((golden / "manifest.json").read_text())
    manifest["run"]["workload"]["settings"] = ASKED
    (golden / "manifest.json").write_bytes(write_manifest(manifest))
    out = jobs.replay(engine, golden, tmp_path / "candidate.trace", model=TINY, injected=False)
    with closing(open_trace(out)) as candidate:
        resolved = candidate.run.engine_facts("settings")
        found = {name: resolved.get(name) for name in ASKED if name in resolved}
        assert {"dtype", "enforce_eager", "max_num_seqs", "enable_prefix_caching", "logprobs_mode"} <= set(found)
        assert {k: v for k, v in found.items() if k != "load_format"} == {
            k: v for k, v in ASKED.items() if k in found and k != "load_format"
        }
        assert candidate.complete
