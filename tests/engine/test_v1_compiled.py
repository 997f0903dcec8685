"""Real vLLM V1 compiled by Inductor: recorded and replayed as it is, taps in the graph."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from engine_support import EAGER, ROOT, TINY, Engines, Running, find_engine, greedy
from typer.testing import CliRunner

from tracereplay.alone.replay import replay_isolated
from tracereplay.cli.main import app
from tracereplay.comparator import Policy, compare_traces
from tracereplay.errors import UsageError
from tracereplay.launch import Configured
from tracereplay.launch.jobs import record
from tracereplay.recorder.options import Options
from tracereplay.trace import Trace, open_trace
from tracereplay.workload import Workload

pytestmark = pytest.mark.engine

BARRIER = "keep it from fusing them"  # what a recording says of its taps
COMPILED = {**EAGER, "enforce_eager": False}


def classes(verdict: Mapping[str, object]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for operator in verdict["operators"]:  # type: ignore[attr-defined]
        found.setdefault(operator["operator"], set()).add(operator["class"])
    return found


@pytest.mark.usefixtures("golden_v1")  # made first, so that the compiled engine starts once for all that follow
def test_another_dtype_is_the_cause_and_not_the_operator_that_shows_it(
    engines: Engines, single_process: Mapping[str, str]
) -> None:
    eager: Running = engines.start("v1", env=single_process, dtype="float32")
    golden = eager.record(*greedy(20, 7, 12), settings={**EAGER, "dtype": "float32"})
    compiled: Running = engines.start("v1", env=single_process, enforce_eager=False)
    verdict = compiled.verdict(golden)
    assert (verdict.verdict, verdict.cause) == ("diverged", "setting")
    assert "dtype is 'float32' in golden and 'bfloat16' in the candidate" in verdict.reasons[0]
    assert "--set dtype=float32" in verdict.reasons[0]
    assert not [
        d for d in verdict.settings_diff if d.name.startswith(("model_config.", "weights", "architecture"))
    ]


def test_an_eager_golden_replayed_compiled_names_what_the_compiler_fused(
    engines: Engines, golden_v1: Trace, single_process: Mapping[str, str]
) -> None:
    compiled: Running = engines.start("v1", env=single_process, enforce_eager=False)
    verdict = compiled.verdict(golden_v1).as_dict()
    found = classes(verdict)
    for exact in ("QKVParallelLinear", "RowParallelLinear", "MergedColumnParallelLinear", "Attention"):
        assert found[exact] == {"identical"}
    assert found["RMSNorm"] == {"rounding"}
    assert found["SiluAndMul"] == {"rounding"}
    # Identical where vLLM's rotary kernel rounds to nearest. On processors where it truncates (AVX2), the compiled
    # native code differs from it by that: a bias that all rotary embeddings share, which is a rounding convention.
    assert found["RotaryEmbedding"] <= {"identical", "rounding"}
    assert verdict["first_divergence"] is None
    differing = {d["name"] for d in verdict["settings_diff"]}
    assert {"enforce_eager", "compilation_mode"} <= differing
    # What nothing uses is removed with its tap, and said.
    assert any(n["site"] == "model.norm" for n in verdict["coverage"]["not_compared"])


def test_what_the_compiler_fused_is_cancelled_inside_its_graph(
    engines: Engines, golden_v1: Trace, single_process: Mapping[str, str]
) -> None:
    compiled: Running = engines.start("v1", env=single_process, enforce_eager=False)
    verdict = compiled.bisect_operators(golden_v1, policy=Policy(logprob_max_abs=1e-3), max_passes=4)
    assert verdict.closure is not None
    assert (verdict.closure.held, verdict.closure.rows) == (True, 64), verdict.closure
    everything = next(part for part in verdict.attribution or () if part.role == "all")
    assert (everything.explains, everything.logprob_max) == (1.0, 0.0)
    named = {part.operators[0] for part in verdict.attribution or () if part.role == "class"}
    assert {"RMSNorm", "SiluAndMul"} <= named <= {"RMSNorm", "SiluAndMul", "RotaryEmbedding"}


def test_a_compiled_recording_repeats_itself_and_runs_see_no_stale_graph(
    engines: Engines, single_process: Mapping[str, str]
) -> None:
    compiled: Running = engines.start("v1", env=single_process, enforce_eager=False)
    golden = compiled.record(*greedy(20, 7, 12), settings=COMPILED)
    verdict = compiled.verdict(golden).as_dict()
    assert verdict["verdict"] == "match"
    assert {o["class"] for o in verdict["operators"]} == {"identical"}
    # The census follows what the compiler traced: nothing computes unobserved, and nothing is counted twice.
    census = verdict["coverage"]["census"]
    assert census["golden"] == census["candidate"]
    assert (census["golden"]["unobserved"], census["golden"]["parameters"]) == ([], [])
    sites = {o["site"] for o in verdict["operators"]} - {"sampler"}
    assert census["golden"]["observed"] == {"operators": len(sites), "calls": 2 * len(sites)}


def test_a_reproducer_of_a_compiled_call_says_why_that_alone_differs(
    engines: Engines, single_process: Mapping[str, str], tmp_path: Path
) -> None:
    compiled: Running = engines.start("v1", env=single_process, enforce_eager=False)
    golden = compiled.record(*greedy(9, max_tokens=2), settings=COMPILED, options=Options(level="kernel"))
    described = golden.run.engine
    assert described["model_config"]["num_hidden_layers"] == 5
    said = f"compiled its model (compilation_mode {described['settings']['compilation_mode']})"
    call = ["repro", str(golden.path), "--site", "model.layers.1.post_attention_layernorm", "--step", "1"]
    made = CliRunner().invoke(app, [*call, "--model", str(TINY), "-o", str(tmp_path / "norm")])
    assert (made.exit_code, said in made.output) == (0, True), made.output
    engines.stop()
    done = subprocess.run(
        [find_engine("v1").python, tmp_path / "norm" / "repro.py"], capture_output=True, text=True
    )
    assert (done.returncode, "elements differ" in done.stdout) == (1, True), done.stdout + done.stderr
    assert said in " ".join(done.stdout.split())
    assert "Differences of that size are not a fault" in " ".join(done.stdout.split())
    refused = CliRunner().invoke(app, [*call, "--kernel", "aten.mul", "-o", str(tmp_path / "kernel")])
    assert isinstance(refused.exception, UsageError)
    assert "ran inside a compiled graph" in str(refused.exception)
    isolated = replay_isolated(find_engine("v1"), Path(golden.path), tmp_path / "isolated.trace", model=TINY)
    verdict = compare_traces(golden, isolated, Policy().made_strict())
    assert verdict.first_divergence is not None
    assert any("Golden's model was compiled" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("family", ["tiny", pytest.param("gemma", marks=pytest.mark.long)])
def test_the_observer_effect_of_a_compiled_engine_is_stated(
    engines: Engines, single_process: Mapping[str, str], tmp_path: Path, family: str, gemma: Path
) -> None:
    engines.stop()
    engine = find_engine("v1")
    launch = Configured("v1", engine.python, {**engine.env, **single_process}, engine.settings)
    model = ROOT / "fixtures" / "tiny-llama" if family == "tiny" else gemma
    workload = Workload(str(model), tuple(greedy(20, 7)), COMPILED)
    trace = open_trace(record(launch, workload, tmp_path / "compiled.trace", check_observer=True))
    observer = trace.run.observer
    assert observer["sequences"] == 2
    drift = observer["logprob_abs_diff"]["max"]
    if family == "tiny":
        assert observer["tokens_differ"] == 0
        # Not zero on every processor: taps keep Inductor from fusing, and other loops add in another order.
        assert drift < 0.05
        # The engine without taps was compiled last: had its graph been kept and loaded, taps would be silent.
        again = open_trace(record(launch, workload, tmp_path / "again.trace"))
        assert [len(s.calls) for s in again.steps("record")] == [len(s.calls) for s in trace.steps("record")]
        assert [BARRIER in n for s in again.steps("record") for n in s.notes] == [True]
        # Taps that stand where nothing can be fused change nothing.
        options = Options(sites=("*_proj", "*.attn", "lm_head"))
        trace = open_trace(
            record(launch, workload, tmp_path / "unfused.trace", check_observer=True, options=options)
        )
        observer = trace.run.observer
        assert (observer["tokens_differ"], observer["logprob_abs_diff"]["max"]) == (0, 0)
        assert {call.site.rpartition(".")[2] for call in trace.steps("record")[1].calls} == {
            "qkv_proj", "o_proj", "attn", "gate_up_proj", "down_proj", "logits_processor",
        }  # fmt: skip
        assert not [n for s in trace.steps("record") for n in s.notes if BARRIER in n]
    else:
        # Without taps the embedding times the normaliser is fused with the norm behind it; a tap between them has
        # it rounded to bfloat16 (the root of 320 is no power of two), which may flip a greedy token.
        assert drift > 0
        assert "model.layers.0.input_layernorm" in {call.site for call in trace.steps("record")[0].calls}
