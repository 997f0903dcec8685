"""Models whose operators engines call, name and feed in other ways: all are seen, fed and compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from engine_support import FAULTS, Engines, Running, find_engine, greedy, random_model

from tracereplay.census import Census
from tracereplay.comparator import Policy, compare_traces
from tracereplay.errors import Unsupported, WorkloadError
from tracereplay.launch import Configured, EngineProcess
from tracereplay.trace import Trace
from tracereplay.verdict import Verdict
from tracereplay.workload import Prompt

pytestmark = pytest.mark.engine

PROMPTS = greedy(24, 9, 1, max_tokens=6)
# Tokens and logprobs of these random models may differ where operators only round differently.
LOOSE = Policy(logprob_max_abs=1.0, differing_tokens=18)


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Qwen3 with random weights: norms on q and k, which V0 calls by ``forward_native``."""
    out = tmp_path_factory.mktemp("models") / "qwen3"
    sizes = ["--layers", "2", "--hidden", "128", "--heads", "4", "--kv-heads", "2", "--intermediate", "256"]
    return random_model(out, "qwen3", *sizes)


def census(trace: Trace, name: str) -> Census:
    found = [step.census for step in trace.steps(name) if step.census is not None]
    assert found, f"no census in {name}"
    return found[-1]


def beyond(verdict: Verdict) -> list[str]:
    operators = [o.site for o in verdict.operators if o.error_class in ("exceeds", "nonfinite")]
    return operators + [f"into {e.site}" for e in verdict.edges if e.error_class in ("exceeds", "nonfinite")]


@pytest.fixture
def golden_qwen3(engines: Engines, qwen3: Path, recordings: dict[str, Trace]) -> Trace:
    """V0's recording."""
    if "qwen3" not in recordings:
        recordings["qwen3"] = engines.start("v0", qwen3).record(*PROMPTS)
    return recordings["qwen3"]


@pytest.fixture
def v1_qwen3(
    golden_qwen3: Trace, engines: Engines, single_process: Mapping[str, str], fault_file: Path, qwen3: Path
) -> Running:
    """V1, with faults that can be planted."""
    faults = {
        "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file), "TRACEREPLAY_TEST_FAULT_FAMILY": "1",
    }  # fmt: skip
    return engines.start("v1", qwen3, {**single_process, **faults})


def test_norms_that_a_model_calls_past_forward_are_seen_and_compared(
    golden_qwen3: Trace, v1_qwen3: Running
) -> None:
    golden = golden_qwen3
    calls = {call.site for step in golden.steps("record") for call in step.calls}
    norms = {f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_norm", "k_norm")}
    assert norms <= calls
    assert not [note for step in golden.steps("record") for note in step.notes if "did not run" in note]
    candidate = v1_qwen3.replay(golden)
    for found in (census(golden, "record"), census(candidate, "rerun")):
        assert (found.unobserved, found.parameters) == ((), ()), found
    verdict = compare_traces(golden, candidate, LOOSE)
    assert beyond(verdict) == []
    assert norms <= {o.site for o in verdict.operators}
    assert verdict.coverage.share == 1.0
    assert verdict.coverage.census.unobserved == ()


def test_a_fault_in_such_a_norm_is_named_and_no_other_operator_is(
    golden_qwen3: Trace, v1_qwen3: Running, plant: Callable[[str], None]
) -> None:
    plant("slight_q_norm")
    verdict = compare_traces(golden_qwen3, v1_qwen3.replay(golden_qwen3), LOOSE)
    assert (verdict.verdict, verdict.cause) == ("diverged", "operator")
    blamed = [o.site for o in verdict.operators if o.error_class not in ("identical", "rounding")]
    assert blamed == ["model.layers.1.self_attn.q_norm"]
    assert verdict.first_divergence is not None
    assert verdict.first_divergence.site == "model.layers.1.self_attn.q_norm"
    assert beyond(verdict) in ([], blamed)


def test_a_model_of_transformers_is_fed_and_compared_row_by_row(
    engines: Engines, single_process: Mapping[str, str]
) -> None:
    golden = engines.start("v1", env=single_process).record(*PROMPTS)
    backend = engines.start("v1", env=single_process, model_impl="transformers")
    candidate = backend.replay(golden)
    assert census(candidate, "rerun").unobserved == ()
    fed = [c for step in candidate.steps("injected") for c in step.calls if c.site.endswith("down_proj")]
    assert {call.fed for call in fed} == {(0,)}
    assert {len(call.inputs[0].shape) for call in fed} == {2}
    verdict = compare_traces(golden, candidate, LOOSE)
    assert beyond(verdict) == []
    assert [(d.name, d.golden, d.candidate) for d in verdict.settings_diff if d.name == "model_impl"] == [
        ("model_impl", "vllm", "transformers")
    ]
    norms = [o for o in verdict.operators if "Norm" in o.operator]
    assert len(norms) == 11
    assert {o.error_class for o in norms} <= {"identical", "rounding", "biased"}
    left_out = {left.site for left in verdict.coverage.not_compared if "no such site" in left.reason}
    assert all(site.endswith("rotary_emb") for site in left_out), left_out


@pytest.mark.parametrize(
    ("model_type", "architecture", "said"),
    [("nosuch", "NoSuchForCausalLM", "vLLM cannot run the model"), ("bert", "BertModel", "generates no text")],
)
@pytest.mark.long
def test_a_model_that_cannot_be_recorded_is_refused_in_a_sentence_before_it_is_loaded(
    tmp_path: Path, model_type: str, architecture: str, said: str
) -> None:
    config = {
        "model_type": model_type, "architectures": [architecture], "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 300, "max_position_embeddings": 64,
    }  # fmt: skip
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    engine = find_engine("v1")
    launch = Configured("v1", engine.python, engine.env, engine.settings)
    with pytest.raises(WorkloadError, match=said) as raised:
        EngineProcess(launch, model=model, settings={}).close()
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)


def test_a_model_with_an_encoder_is_refused_in_a_sentence_before_it_is_loaded(tmp_path: Path) -> None:
    config = {
        "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "d_model": 32,
        "vocab_size": 320, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 80, "max_target_positions": 64,
        "is_encoder_decoder": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    engine = find_engine("v1")
    launch = Configured("v1", engine.python, engine.env, engine.settings)
    with pytest.raises(WorkloadError, match="has an encoder beside its decoder") as raised:
        EngineProcess(launch, model=tmp_path, settings={}).close()
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"speculative_config": {"method": "medusa", "model": "m"}}, "Speculative decoding by the method medusa"),
        ({"pipeline_parallel_size": 2}, "Pipeline parallelism"),
    ],
)
@pytest.mark.long
def test_a_way_to_run_that_cannot_be_recorded_is_refused_before_the_model_is_loaded(
    settings: dict[str, object], said: str
) -> None:
    engine = find_engine("v1")
    launch = Configured("v1", engine.python, engine.env, engine.settings)
    with pytest.raises(Unsupported, match=said):
        EngineProcess(launch, model=Path("nowhere"), settings=settings).close()


@pytest.mark.long
def test_a_prompt_that_is_too_long_is_refused_in_a_sentence(
    engines: Engines, single_process: Mapping[str, str]
) -> None:
    running = engines.start("v1", env=single_process)
    with pytest.raises(WorkloadError, match="Prompt 1 has 512 tokens, and the engine's max_model_len is 512"):
        running.generate(*greedy(3, 512))


def test_a_logit_bias_is_kept_and_applied(engines: Engines, single_process: Mapping[str, str]) -> None:
    biased = greedy(5, max_tokens=3, logit_bias={"7": 100.0})
    running = engines.start("v1", env=single_process)
    golden = running.record(*biased)
    assert [s.token for step in golden.steps("record") for s in step.sampled] == [7, 7, 7]
    verdict = compare_traces(golden, running.replay(golden))
    assert (verdict.verdict, verdict.tokens.differing) == ("match", 0)


@pytest.mark.parametrize("name", ["v1", pytest.param("v0", marks=pytest.mark.long)])
def test_grammars_and_stop_texts_are_kept_and_applied(
    engines: Engines, single_process: Mapping[str, str], name: str
) -> None:
    running = engines.start(name, env=single_process if name == "v1" else {})
    asked = greedy(5, max_tokens=12)[0]
    tokens = running.generate(asked)[0]["token_ids"]
    stop = bytes(tokens[4:5]).decode()
    sampling = {**asked.sampling, "ignore_eos": False}
    golden = running.record(
        Prompt(asked.token_ids, None, {**sampling, "stop": [stop]}),
        Prompt(asked.token_ids, None, {**sampling, "structured_outputs": {"choice": ["abba", "baab"]}}),
    )
    stopped, chosen = (r["token_ids"] for r in golden.results["record"]["requests"])
    assert stopped == tokens[: tokens.index(tokens[4]) + 1]
    assert bytes(chosen[:4]).decode() in ("abba", "baab")
    verdict = compare_traces(golden, running.replay(golden))
    assert (verdict.verdict, verdict.tokens.differing) == ("match", 0), verdict.reasons
    if name == "v0":
        return  # it reads a grammar only when it has begun to generate
    with pytest.raises(WorkloadError, match=r"^vLLM refuses ") as raised:
        running.generate(Prompt(asked.token_ids, None, {**sampling, "structured_outputs": {"regex": "["}}))
    assert "\n" not in str(raised.value)
    assert running.generate(asked)[0]["token_ids"] == tokens
