"""A recorded call as a folder that somebody without tracereplay runs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from engine_support import TINY, Engines, Running, find_engine, greedy
from typer.testing import CliRunner

from tracereplay.cli.main import app
from tracereplay.recorder.options import Options
from tracereplay.trace import Trace

pytestmark = pytest.mark.engine

Plant = Any


def make(trace: Path | str, site: str, kernel: str | None, step: int, out: Path) -> Path:
    arguments = ["--site", site, "--step", str(step), "-o", str(out), "--model", str(TINY)]
    arguments += ["--kernel", kernel] if kernel else []
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


@pytest.fixture(scope="module")
def faulty() -> dict[str, Path]:
    return {}


@pytest.fixture
def recorded(v1_kernel_faults: Running, engines: Engines, plant: Plant, faulty: dict[str, Path]) -> Path:
    """Of an engine in which a kernel and a norm are wrong; the engine has ended."""
    if "trace" not in faulty:
        plant("wrong_silu epsilon")
        trace = v1_kernel_faults.record(*greedy(6, max_tokens=2), options=Options(level="kernel"))
        faulty["trace"] = Path(trace.path)
        engines.stop()
    return faulty["trace"]


@pytest.mark.parametrize(
    ("site", "kernel", "is_wrong"),
    [
        ("model.layers.2.mlp.act_fn", "aten.silu", True),
        ("model.layers.2.mlp.act_fn", "aten.mul.Tensor", False),
        ("model.layers.2.post_attention_layernorm", None, True),
        ("model.layers.1.post_attention_layernorm", None, False),
    ],
)
def test_a_planted_fault_shows_without_tracereplay(
    recorded: Path, site: str, kernel: str | None, is_wrong: bool, tmp_path: Path
) -> None:
    """Recorded from an engine that is wrong, the call gives something else where vLLM is right."""
    code, printed = run("v1", make(recorded, site, kernel, 1, tmp_path / "repro"))
    assert code == int(is_wrong)
    assert ("elements differ; relative L2" in printed) is is_wrong
    if not is_wrong:
        assert "the same, bit for bit" in printed


@pytest.mark.parametrize(
    ("engine", "site", "same"),
    [("v0", "model.layers.0.mlp.act_fn", True), ("v1-0.18", "model.layers.0.self_attn.rotary_emb", None)],
)
def test_vllms_layers_are_built_by_other_versions(
    golden_v0: Trace, engines: Engines, engine: str, site: str, same: bool | None, tmp_path: Path
) -> None:
    engines.stop()
    code, printed = run(engine, make(golden_v0.path, site, None, 2, tmp_path / "repro"))
    equal = "the same, bit for bit" in printed
    assert code == int(not equal), printed
    # Whether another version's rotary kernel rounds as V0's did depends on the processor.
    assert same is None or same == equal


@pytest.mark.parametrize(
    ("site", "kernel", "under_v1"),
    [
        ("model.layers.0.self_attn.qkv_proj", "aten.mm", ""),
        ("model.layers.0.self_attn.rotary_emb", "_C.rotary_embedding", "query after the call: "),
        ("sampler", "aten.exponential_", "self after the call: "),
    ],
)
def test_a_call_is_repeated_elsewhere(
    kernels_v0: Trace, engines: Engines, site: str, kernel: str, under_v1: str, tmp_path: Path
) -> None:
    """Weights by name, views that share memory, and a generator's state come back as they were: to the bit in the
    version that recorded. Whether another one's kernel gives the same depends on the processor, but it runs."""
    engines.stop()
    script = make(kernels_v0.path, site, kernel, 0, tmp_path / "repro")
    code, printed = run("v0", script)
    assert (code, "the same, bit for bit" in printed, "differ" in printed) == (0, True, False)
    code, printed = run("v1", script)
    if code:
        assert under_v1 in printed
        assert " elements differ" in printed
    else:
        assert "the same, bit for bit" in printed
