"""A recorded call as a folder that somebody without tracereplay runs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from engine_support import ROOT, TINY, Engines, Running, find_engine, greedy
from typer.testing import CliRunner

from tracereplay.cli.main import app

pytestmark = pytest.mark.engine

KERNELS = ROOT / "fixtures" / "tiny-llama-v0-kernels.trace"
Plant = Any


def make(trace: Path | str, site: str, kernel: str, step: int, out: Path) -> Path:
    arguments = ["--site", site, "--kernel", kernel, "--step", str(step), "-o", str(out), "--model", str(TINY)]
    result = CliRunner().invoke(app, ["repro", str(trace), *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {"repro.py", "inputs.safetensors", "expected.safetensors"}
    return out / "repro.py"


def run(engine: str, script: Path) -> tuple[int, str]:
    """Runs it as somebody would who has that engine, and nothing of ours."""
    python = find_engine(engine).python
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    known = subprocess.run([python, "-c", "import tracereplay"], env=environment, capture_output=True, cwd="/")
    assert known.returncode == 1
    done = subprocess.run([python, script], env=environment, capture_output=True, text=True, cwd="/", timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_a_planted_fault_shows_without_tracereplay(
    v1_kernel_faults: Running, engines: Engines, plant: Plant, tmp_path: Path
) -> None:
    """Recorded from an engine whose kernel is wrong, the call gives something else where it is right."""
    plant("wrong_silu")
    trace = v1_kernel_faults.record(*greedy(6, max_tokens=2), options={"level": "kernel"})
    engines.stop()
    site = "model.layers.2.mlp.act_fn"
    code, printed = run("v1", make(trace.path, site, "aten.silu", 1, tmp_path / "silu"))
    assert code == 1
    assert "output 0: " in printed
    assert " elements differ; relative L2 0.00" in printed
    code, printed = run("v1", make(trace.path, site, "aten.mul.Tensor", 1, tmp_path / "mul"))
    assert (code, printed.count("the same, bit for bit")) == (0, 1)


@pytest.mark.parametrize(
    ("site", "kernel", "under_v1"),
    [
        ("model.layers.0.self_attn.qkv_proj", "aten.mm", None),
        ("model.layers.0.self_attn.rotary_emb", "_C.rotary_embedding", "query after the call: "),
        ("sampler", "aten.exponential_", "self after the call: 320 of 320 elements differ"),
    ],
)
def test_a_call_is_repeated_elsewhere(site: str, kernel: str, under_v1: str | None, tmp_path: Path) -> None:
    """Weights by name, views that share memory, and a generator's state come back as they were."""
    script = make(KERNELS, site, kernel, 0, tmp_path / "repro")
    code, printed = run("v0", script)
    if kernel != "aten.mm":  # whose sums depend on the processor, and that recorded the fixture
        assert (code, "differ" in printed) == (0, False)
    code, printed = run("v1", script)
    if under_v1 is not None:
        assert code == 1
        assert under_v1 in printed
        assert " elements differ" in printed
