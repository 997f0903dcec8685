"""vLLM's Model Runner V2 and asynchronous scheduling, on a stand-in for a GPU (stand_in/README.md).

CI runs both runners asynchronously, which is how production runs them. Model Runner V2 in step, too:

    TRACEREPLAY_RUNNERS=all pytest tests/engine/test_runners.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from engine_support import FAULTS, TINY, Engines, Running, find_engine, greedy, token_ids
from rich.console import Console
from scheduling import check_repeats, workloads

from tracereplay.alone.replay import Selection, replay_isolated
from tracereplay.cli.show_kernels import show_kernels
from tracereplay.comparator import compare_traces
from tracereplay.recorder.options import Options
from tracereplay.trace import Trace, open_trace
from tracereplay.workload import Prompt

pytestmark = pytest.mark.engine

WORKLOADS = workloads()
STAND_IN = Path(__file__).parent / "stand_in"
FAULTY = {
    "scale": "model.layers.1.input_layernorm",
    "stale_key": "model.layers.2.self_attn.attn",
    "rounded_logits": "logits_processor",
}  # fmt: skip


RUNNERS = {"V2 asynchronous": ("V2", True), "V1 asynchronous": ("V1", True)}
# The sampler's kernels, in the order in which they are launched.
TEMPERATURE, GUMBEL = "_temperature_kernel", "_gumbel_sample_kernel"
SOFTMAX, RANKS = "_topk_log_softmax_kernel", "_ranks_kernel"
ALL = os.environ.get("TRACEREPLAY_RUNNERS") == "all"
V2 = ["V2 asynchronous", "V2"] if ALL else ["V2 asynchronous"]
if ALL:
    RUNNERS["V2"] = ("V2", False)


@pytest.fixture(scope="module", params=RUNNERS)
def engine(
    request: pytest.FixtureRequest, engines: Engines, fault_file: Path, single_process: Mapping[str, str],
    by_the_v1_runner: Trace,
) -> Running:  # fmt: skip
    """Chunks of 64 tokens, as in test_v1_scheduling.py."""
    runner, asynchronous = RUNNERS[request.param]
    env = {
        **single_process, "PYTHONPATH": os.pathsep.join([str(STAND_IN), str(FAULTS)]), "TRITON_INTERPRET": "1",
        "VLLM_USE_V2_MODEL_RUNNER": str(int(runner == "V2")), "TRACEREPLAY_TEST_FAULT": str(fault_file),
        **({"STAND_IN_ASYNC": "1"} if asynchronous else {}),
    }  # fmt: skip
    running = engines.start("v1", env=env, max_num_batched_tokens=64, max_model_len=1024)
    told = running.process.info["settings"]
    assert (told["model_runner"], told["async_scheduling"]) == (runner, asynchronous)
    return running


@pytest.mark.parametrize("name", WORKLOADS)
def test_recording_changes_no_bit_and_a_replay_matches(engine: Running, name: str) -> None:
    check_repeats(engine, WORKLOADS[name])


@pytest.mark.parametrize("engine", V2, indirect=True)
@pytest.mark.parametrize("fault", FAULTY)
def test_a_fault_is_named_at_its_place(
    engine: Running, by_the_v1_runner: Trace, plant: Callable[[str], None], fault: str
) -> None:
    plant(fault)
    found = engine.verdict(by_the_v1_runner)
    assert found.first_divergence is not None
    assert (found.first_divergence.kind, found.first_divergence.site) == ("operator", FAULTY[fault])
    guilty = {o.site for o in found.operators if o.error_class not in ("identical", "incomparable")}
    assert guilty - {"sampler"} == {FAULTY[fault]}


@pytest.mark.parametrize("engine", V2, indirect=True)
def test_kernels_written_in_triton_are_recorded(
    engine: Running, plant: Callable[[str], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In the sampler, between what PyTorch dispatches; no bit changes, and one that is wrong is named."""
    drawn = {"max_tokens": 3, "temperature": 0.8, "seed": 7, "logprobs": 1, "ignore_eos": True}
    prompts = [*greedy(9, max_tokens=3), Prompt(token_ids(5), None, drawn)]
    plain = engine.generate(*prompts)
    golden = engine.record(*prompts, options=Options(level="kernel"))
    recorded = golden.results["record"]
    assert recorded["ranks"][0]["errors"] == {}
    for key in ("token_ids", "logprobs"):
        assert [r[key] for r in recorded["requests"]] == [p[key] for p in plain]
    step = golden.segment("record", 0).step(1)
    launched = {k.name: k for k in step.kernels if k.name.startswith("triton.")}
    assert {k.site for k in launched.values()} == {"sampler"}
    assert set(launched) >= {f"triton.{name}" for name in (TEMPERATURE, GUMBEL, SOFTMAX, RANKS)}
    # What a launch leaves as it was is not listed: memory that is used again may have held the same before.
    wrote = {k.name: k for step in golden.steps("record") for k in step.kernels if k.written}
    assert set(launched) <= set(wrote)
    softmax = launched[f"triton.{SOFTMAX}"]
    assert softmax.schema.startswith(f"vllm.v1.worker.gpu.sample.logprob.{SOFTMAX}(output_ptr, logits_ptr, ")
    assert (softmax.keywords["vocab_size"], softmax.keywords["grid"]) == (320, (2,))
    softmax = wrote[softmax.name]
    assert [softmax.tensor_names()[i] for i in softmax.written] == ["output_ptr"]
    show_kernels(golden, "record", "sampler", Console(width=200), step=1, first_steps=None)
    assert f"triton.{SOFTMAX}" in capsys.readouterr().out

    verdict = engine.verdict(golden)
    assert (verdict.verdict, verdict.kernels) == ("match", None), verdict.reasons
    out = replay_isolated(
        find_engine("v1"), Path(golden.path), tmp_path / "i.trace", selection=Selection("sampler", "*"), model=TINY
    )
    isolated = compare_traces(golden, open_trace(out)).isolated
    assert isolated is not None
    why = {n.kernel: n.reason for n in isolated.not_replayed}
    assert "written in Triton, and was launched without the dispatcher" in why[f"triton.{SOFTMAX}"]
    assert set(launched) < set(why)
    assert "aten.argmax.default" in {k.kernel for k in isolated.kernels}

    plant("wrong_softmax")
    verdict = engine.verdict(golden)
    first = verdict.first_divergence
    assert first is not None
    assert (first.site, first.kernel) == ("sampler", f"triton.{SOFTMAX}")
    assert verdict.kernels is not None
    assert verdict.kernels.alike


@pytest.mark.parametrize("engine", V2, indirect=True)
def test_what_differs_is_cancelled(engine: Running, by_the_v1_runner: Trace, plant: Callable[[str], None]) -> None:
    plant("scale")
    verdict = engine.bisect_operators(by_the_v1_runner, max_passes=4)
    assert verdict.closure is not None
    assert verdict.closure.held, verdict.closure


@pytest.mark.parametrize("engine", V2, indirect=True)
def test_the_v1_runners_golden_matches(engine: Running, by_the_v1_runner: Trace) -> None:
    """The sampler takes logprobs by another kernel; the model's operators are the same."""
    found = engine.verdict(by_the_v1_runner)
    assert (found.verdict, found.coverage.share) == ("match", 1.0), found.reasons
    assert {o.error_class for o in found.operators if o.site != "sampler"} == {"identical"}
    runners = next(d for d in found.settings_diff if d.name == "model_runner")
    assert (runners.golden, runners.candidate) == ("V1", "V2")
