"""CUDA graphs of vLLM's Model Runner V2, on a stand-in for a GPU (stand_in/README.md).

vLLM captures, pads, dispatches and replays; decode steps of three requests run in a graph of four rows. Copies to
the host are as late as a device's may be, and two steps are in flight. CI runs graphs of the whole model with
breakable pieces for prefills; the other modes:

    TRACEREPLAY_GRAPH_MODES=all pytest tests/engine/test_graphs.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from engine_support import FAULTS, Engines, Running, greedy
from scheduling import check_repeats, workloads

from tracereplay.trace import Trace

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent
WORKLOADS = workloads()
ALL = os.environ.get("TRACEREPLAY_GRAPH_MODES") == "all"
# vLLM's mode, and whether its compiler makes the pieces
MODES: Mapping[str, tuple[str, bool]] = {
    "full, and broken into pieces": ("FULL_AND_PIECEWISE", False),
    "full, and compiled pieces": ("FULL_AND_PIECEWISE", True),
    "broken into pieces": ("PIECEWISE", False),
    "compiled pieces": ("PIECEWISE", True),
    "full, decoding only": ("FULL_DECODE_ONLY", False),
}
IN_CI = ("full, and broken into pieces", "compiled pieces")
RUN = tuple(MODES) if ALL else IN_CI
# by their names in faults/: where each must be named
FAULTY = {
    "scale": "model.layers.1.input_layernorm",
    "epsilon": "model.layers.2.post_attention_layernorm",
    "late_positions": "model.layers.1.self_attn.rotary_emb",
    "wrong_row": "model.embed_tokens",
    "other_activation": "model.layers.3.mlp.act_fn",
    "soft_attention": "model.layers.3.self_attn.attn",
    "biased_keys": "model.layers.0.self_attn.qkv_proj",
    "coarse_weights": "model.layers.2.mlp.gate_up_proj",
    "final_norm": "model.norm",
    "slight_product": "model.layers.3.self_attn.o_proj",
    "truncated_product": "model.layers.1.mlp.down_proj",
    "scaled_residual": "model.layers.2.post_attention_layernorm",
}


def start(
    engines: Engines, mode: str, *, compiled: bool = False, switches: Path | None = None
) -> Running:  # fmt: skip
    """vLLM 0.32.0 with Model Runner V2 and graphs; chunks of 64 tokens."""
    given = {
        "PYTHONPATH": os.pathsep.join(map(str, (HERE / "stand_in", FAULTS, HERE))), "TRITON_INTERPRET": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "STAND_IN_GRAPHS": mode,
        "STAND_IN_LATE": "7", "STAND_IN_ASYNC": "1",
        **({"TRACEREPLAY_TEST_SWITCHES": str(switches)} if switches else {}),
    }  # fmt: skip
    if compiled:
        given |= {"STAND_IN_PIECES": "compiled", "VLLM_DISABLE_COMPILE_CACHE": "1"}
    else:
        given["VLLM_USE_BREAKABLE_CUDAGRAPH"] = "1"
    compilation = {"cudagraph_capture_sizes": [1, 2, 4, 8], **({} if compiled else {"mode": 0})}
    return engines.start(
        "v1", env=given, enforce_eager=False, max_num_batched_tokens=64, max_model_len=1024,
        compilation_config=compilation,
    )  # fmt: skip


@pytest.fixture(scope="module")
def switches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("switches") / "switches"
    path.write_bytes(bytes(len(FAULTY)))
    return path


@pytest.fixture
def switch_on(switches: Path) -> Iterator[Callable[[str], None]]:
    """Makes a fault active until the test ends."""

    def on(name: str) -> None:
        with switches.open("r+b") as file:
            file.seek(list(FAULTY).index(name))
            file.write(b"\1")

    yield on
    with switches.open("r+b") as file:
        file.write(bytes(len(FAULTY)))


@pytest.fixture(scope="module", params=RUN)
def engine(request: pytest.FixtureRequest, engines: Engines, switches: Path, by_the_v1_runner: Trace) -> Running:
    mode, compiled = MODES[request.param]
    return start(engines, mode, compiled=compiled, switches=switches)


@pytest.fixture(scope="module")
def graph_goldens() -> dict[str, Trace]:
    """A recording of each engine, by its mode."""
    return {}


@pytest.fixture
def golden(engine: Running, graph_goldens: dict[str, Trace]) -> Trace:
    """Of three requests, which leave a row of padding in a graph of four; made once for each engine."""
    name = str(engine.folder)
    if name not in graph_goldens:
        graph_goldens[name] = engine.record(*greedy(20, 7, 33))
    return graph_goldens[name]


# What every mode is tried on; the first one of CI on all of it. (Tests by engine are grouped by the index of its
# mode.)
BASIC = ("several lengths", "a prompt of three chunks")
FEW = ("scale", "soft_attention", "scaled_residual")
most = pytest.mark.parametrize("engine", RUN if ALL else RUN[:1], indirect=True)


@pytest.mark.parametrize("name", BASIC)
def test_recording_changes_no_bit_and_a_replay_matches(engine: Running, name: str) -> None:
    check_repeats(engine, WORKLOADS[name])


@most
@pytest.mark.parametrize("name", [name for name in WORKLOADS if name not in BASIC])
def test_so_with_caches_samples_and_prompt_logprobs(engine: Running, name: str) -> None:
    check_repeats(engine, WORKLOADS[name])


@pytest.mark.parametrize("fault", FEW)
def test_a_fault_in_a_graph_is_named_at_its_place(
    engine: Running, golden: Trace, switch_on: Callable[[str], None], fault: str
) -> None:
    check_fault(engine, golden, switch_on, fault)


@most
@pytest.mark.parametrize("fault", [fault for fault in FAULTY if fault not in FEW])
def test_other_faults_are_named_too(
    engine: Running, golden: Trace, switch_on: Callable[[str], None], fault: str
) -> None:
    check_fault(engine, golden, switch_on, fault)


def check_fault(running: Running, golden: Trace, switch_on: Callable[[str], None], fault: str) -> None:
    """The fault is named at its place, and nothing else is worse than rounding."""
    switch_on(fault)
    found = running.verdict(golden)
    assert found.first_divergence is not None, found.reasons
    kind = "edge" if fault == "scaled_residual" else "operator"
    assert (found.first_divergence.kind, found.first_divergence.site) == (kind, FAULTY[fault])
    worse = ("exceeds", "biased", "non-finite")
    guilty = {o.site for o in found.operators if o.error_class in worse}
    assert guilty <= {FAULTY[fault]}


def test_what_differs_is_cancelled_within_graphs(
    engine: Running, golden: Trace, switch_on: Callable[[str], None]
) -> None:
    switch_on("scale")
    verdict = engine.bisect_operators(golden, max_passes=4)
    assert verdict.closure is not None
    assert verdict.closure.held, verdict.closure


def test_an_eager_golden_matches(engine: Running, by_the_v1_runner: Trace) -> None:
    """Compiled pieces round otherwise; a graph itself changes nothing."""
    found = engine.verdict(by_the_v1_runner)
    assert (found.verdict, found.coverage.share) == ("match", 1.0), found.reasons
    graphs = {d.name: (d.golden, d.candidate) for d in found.settings_diff}
    assert graphs["enforce_eager"] == (True, False)
    classes = {o.error_class for o in found.operators if o.site != "sampler"}
    compiled = "mode" not in engine.settings["compilation_config"]
    assert classes <= ({"identical", "rounding"} if compiled else {"identical"})


def test_a_golden_of_graphs_matches_eagerly(
    engines: Engines, graph_goldens: dict[str, Trace], single_process: Mapping[str, str]
) -> None:
    """Rows that were padded are compared on real rows."""
    running = engines.start("v1", env=single_process)
    for name, golden in graph_goldens.items():
        found = running.verdict(golden)
        assert (found.verdict, found.coverage.share) == ("match", 1.0), (name, found.reasons)
