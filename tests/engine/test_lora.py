"""Requests to an adapter: base and adapter are one operator, and a replay has the adapter that was recorded."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from engine_support import FAULTS, ROOT, TINY, Engines, Running, greedy

from tracereplay.census import Census
from tracereplay.comparator import compare_traces
from tracereplay.errors import WorkloadError
from tracereplay.gate import workload_of
from tracereplay.storage.adapter import read_adapter
from tracereplay.trace import Trace
from tracereplay.workload import Prompt

sys.path.insert(0, str(ROOT / "fixtures"))

from make_lora import make_lora

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lora(TINY, tmp_path_factory.mktemp("adapters") / "mine")


@pytest.fixture
def running(engines: Engines, single_process: Mapping[str, str], fault_file: Path) -> Running:
    """One sequence at a time: in mixed batches vLLM's CPU kernels give the base model's rows an adapter, too."""
    env = {**single_process, "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(fault_file)}
    return engines.start("v1", env=env, enable_lora=True, max_num_seqs=1)


@pytest.fixture
def golden(running: Running, adapter: Path, recordings: dict[str, Trace]) -> Trace:
    if "lora" not in recordings:
        (prompt,) = greedy(9, max_tokens=6)
        lora = {**prompt.sampling, "lora": read_adapter("mine", adapter).as_dict()}
        recordings["lora"] = running.record(Prompt(prompt.token_ids, None, lora), prompt)
    return recordings["lora"]


def test_requests_to_an_adapter_are_recorded_and_replayed(golden: Trace, running: Running) -> None:
    mine, base = (r["token_ids"] for r in golden.results["record"]["requests"])
    assert mine != base
    sites = golden.sites("record")
    assert sites["model.layers.0.self_attn.qkv_proj"].operator.endswith("WithLoRA")
    linear = {name for name, site in sites.items() if site.role == "linear"}
    assert len(linear) == 20
    assert linear <= {call.site for step in golden.steps("record") for call in step.calls}
    found: list[Census] = [step.census for step in golden.steps("record") if step.census is not None]
    assert found[-1].unobserved == ()
    verdict = compare_traces(golden, running.replay(golden))
    assert (verdict.verdict, verdict.coverage.share) == ("match", 1.0), verdict.reasons


def test_a_fault_in_an_adapters_product_is_named(
    golden: Trace, running: Running, plant: Callable[[str], None]
) -> None:
    plant("adapter_scale")
    verdict = compare_traces(golden, running.replay(golden))
    assert verdict.verdict == "diverged"
    assert verdict.first_divergence is not None
    assert verdict.first_divergence.site == "model.layers.0.mlp.down_proj"
    assert verdict.first_divergence.request == 0
    exceeding = {o.site.rpartition(".")[2] for o in verdict.operators if o.error_class == "exceeds"}
    assert exceeding == {"down_proj"}


def test_an_adapter_that_is_not_the_recorded_one_is_refused_in_a_sentence(
    golden: Trace, adapter: Path, tmp_path: Path
) -> None:
    other = make_lora(TINY, tmp_path / "other", seed=1)
    with pytest.raises(WorkloadError, match="is not the 'mine' that golden's request 0 was served with") as raised:
        workload_of(golden, {"lora_modules": {"mine": str(other)}}, TINY)
    assert raised.value.exit_code == 2
    same = Path(shutil.copytree(adapter, tmp_path / "same"))
    workload = workload_of(golden, {"lora_modules": {"mine": str(same)}}, TINY)
    assert workload.prompts[0].sampling["lora"]["path"] == str(same)
    assert workload.settings["enable_lora"] is True
    kept = adapter.rename(tmp_path / "away")
    try:
        with pytest.raises(WorkloadError, match=r"not at .* any more; say with --lora mine=DIR where it is"):
            workload_of(golden, {}, TINY)
    finally:
        kept.rename(adapter)
