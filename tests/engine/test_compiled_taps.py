"""Under vLLM's compiler: taps that a recording does not need are not in the graph, and change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine_support import ROOT, find_engine, random_model

pytestmark = [pytest.mark.engine, pytest.mark.long]

BARRIER = "keep it from fusing them"
UNFUSED = ["--sites", "*_proj", "--sites", "*.attn", "--sites", "lm_head"]
SIZE = [
    "--layers",
    "3",
    "--hidden",
    "256",
    "--heads",
    "4",
    "--kv-heads",
    "2",
    "--head-dim",
    "64",
    "--intermediate",
    "512",
]


def test_taps_at_linear_layers_and_attention_leave_compiled_code_as_it_is(tmp_path: Path) -> None:
    find_engine("v1")
    model = random_model(tmp_path / "model", "llama", *SIZE, "--vocab", "1024")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt_token_ids": [7 * i % 251 for i in range(n)]}) + "\n" for n in (5, 64, 120, 17))
    )

    def record(name: str, *options: str) -> dict[str, object]:
        command = [
            sys.executable, "-m", "tracereplay.cli.main", "record", "-o", str(tmp_path / name), "--engine", "v1",
            "--model", str(model), "--prompts", str(prompts), "--check-observer", "--set", "enforce_eager=false",
            "--set", "max_model_len=512", *options,
        ]  # fmt: skip
        env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=400)
        run: dict[str, object] = json.loads((tmp_path / name / "manifest.json").read_text())["run"]
        return run

    every, unfused = record("every.trace"), record("unfused.trace", *UNFUSED)
    assert BARRIER in str(every["notes"])
    assert BARRIER not in str(unfused["notes"])
    seen = unfused["observer"]
    assert isinstance(seen, dict)
    assert (seen["tokens_differ"], seen["logprob_abs_diff"]["max"]) == (0, 0)
