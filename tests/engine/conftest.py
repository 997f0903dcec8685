"""Engines for the tests of this folder; see engine_support.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_support import FAULTS, GOLDEN, Engines, Running, find_engine, prompts_of, random_model, token_ids
from recorded_server import Server

from tracereplay.recorder.options import Options
from tracereplay.trace import Trace, open_trace
from tracereplay.workload import Prompt


@pytest.fixture(scope="module", autouse=True)
def bytecode() -> None:
    """Engines keep their bytecode where it is: it would take minutes to compile all that they import again."""


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    found = Engines(tmp_path_factory.mktemp("engines"))
    yield found
    found.stop()


@pytest.fixture
def start_server(engines: Engines) -> Iterator[Callable[..., Server]]:
    """Begins `Server`s, alone on the machine; whatever happens in a test, nothing is left of them."""
    find_engine("v1")
    engines.stop()
    started: list[Server] = []

    def start(*args: Any, **kwargs: Any) -> Server:
        started.append(Server(*args, **kwargs))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="session")
def committed() -> Trace:
    """The committed golden trace: four prompts of different lengths, 16 tokens each, vLLM 0.8.5 V0."""
    return open_trace(GOLDEN)


@pytest.fixture(scope="session")
def golden_v0(engines: Engines, committed: Trace) -> Trace:
    """The committed workload, recorded under vLLM 0.8.5 V0 on this machine.

    Why not the committed trace: on a processor with other vector instructions kernels sum in another order, and
    matrix products differ too.
    """
    return engines.start("v0").record(*prompts_of(committed))


@pytest.fixture(scope="session")
def fault_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "active"
    path.write_text("none")
    return path


Plant = Callable[[str], None]


@pytest.fixture
def plant(fault_file: Path) -> Iterator[Plant]:
    """Makes a fault active until the test ends."""
    yield lambda name: (fault_file.write_text(name), None)[1]
    fault_file.write_text("none")


@pytest.fixture(scope="session")
def single_process() -> Mapping[str, str]:
    """V1 with its engine in the driver's own process: starts faster, computes the same."""
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


@pytest.fixture
def v0(engines: Engines) -> Running:
    """vLLM 0.8.5 with its V0 engine."""
    return engines.start("v0")


@pytest.fixture
def v1(engines: Engines, fault_file: Path, single_process: Mapping[str, str]) -> Running:
    """vLLM 0.32.0, eager, with faults that can be planted."""
    env = {**single_process, "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file)}
    return engines.start("v1", env=env)


@pytest.fixture
def v1_kernel_faults(engines: Engines, fault_file: Path, single_process: Mapping[str, str]) -> Running:
    """The same, where a kernel of PyTorch's can be wrong, too."""
    env = {
        "PYTHONPATH": str(FAULTS),
        "TRACEREPLAY_TEST_FAULT": str(fault_file),
        "TRACEREPLAY_TEST_KERNEL_FAULT": "1",
    }
    return engines.start("v1", env={**single_process, **env})


@pytest.fixture(scope="session")
def recordings() -> dict[str, Trace]:
    """Traces that one test records and others use."""
    return {}


@pytest.fixture
def golden_v1(request: pytest.FixtureRequest, committed: Trace, recordings: dict[str, Trace]) -> Trace:
    """The committed workload, recorded under vLLM 0.32.0, which is started for it only if it must be."""
    if "v1" not in recordings:
        v1: Running = request.getfixturevalue("v1")
        recordings["v1"] = v1.record(*prompts_of(committed))
    return recordings["v1"]


@pytest.fixture(scope="session")
def by_the_v1_runner(
    engines: Engines, committed: Trace, recordings: dict[str, Trace], single_process: Mapping[str, str]
) -> Trace:
    """The committed workload, recorded eagerly by the V1 runner of vLLM 0.32.0."""
    if "v1" not in recordings:
        recordings["v1"] = engines.start("v1", env=single_process).record(*prompts_of(committed))
    return recordings["v1"]


Results = list[dict[str, Any]]


@pytest.fixture(scope="session")
def kernel_recordings(engines: Engines) -> Callable[[str], tuple[Trace, Results, Results]]:
    """By engine a kernel-level trace, what was generated with it, and what without; recorded once."""

    @functools.cache
    def record(name: str) -> tuple[Trace, Results, Results]:
        running = engines.start(name)
        greedy = {"max_tokens": 5, "temperature": 0.0, "logprobs": 0, "ignore_eos": True}
        sampled = {**greedy, "temperature": 0.9, "top_p": 0.9, "seed": 7}
        prompts = Prompt(token_ids(20), None, greedy), Prompt(token_ids(9, 3), None, sampled)
        plain = running.generate(*prompts)
        trace = running.record(*prompts, options=Options(level="kernel"))
        return trace, plain, list(trace.results["record"]["requests"])

    return record


@pytest.fixture(scope="session")
def kernels_v0(kernel_recordings: Callable[[str], tuple[Trace, Results, Results]]) -> Trace:
    """Kernels of vLLM 0.8.5 V0, recorded on this machine."""
    return kernel_recordings("v0")[0]


@pytest.fixture(scope="session")
def kernels_v1(kernel_recordings: Callable[[str], tuple[Trace, Results, Results]]) -> Trace:
    """Kernels of vLLM 0.32.0, recorded on this machine."""
    return kernel_recordings("v1")[0]


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer mixture of eight experts with random weights; a row goes to two of them."""
    out = tmp_path_factory.mktemp("models") / "mixtral"
    sizes = ["--layers", "2", "--hidden", "128", "--heads", "4", "--kv-heads", "2", "--intermediate", "256"]
    return random_model(out, "mixtral", *sizes, "--experts", "8")


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Gemma with random weights: its embedding is multiplied by a normaliser, the root of 320."""
    out = tmp_path_factory.mktemp("models") / "gemma"
    return random_model(out, "gemma", "--layers", "2", "--hidden", "320")
