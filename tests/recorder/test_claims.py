"""Engines under one command find a number each, in whichever order their ranks come."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tracereplay.engines.vllm.guest.claim import claim_segment


def config(instance: str, rank: int = 0) -> Any:
    return SimpleNamespace(instance_id=instance, parallel_config=SimpleNamespace(data_parallel_rank=rank))


def claimed(trace: Path, instance: str, rank: int, data_parallel: int = 0) -> str:
    path = claim_segment(trace, config(instance, data_parallel), rank)
    path.touch(exist_ok=False)
    return path.name


def test_ranks_of_an_engine_share_its_number(tmp_path: Path) -> None:
    assert claimed(tmp_path, "b", 1) == "record-rank1.seg"
    assert claimed(tmp_path, "a", 0) == "record-engine1-rank0.seg"
    assert claimed(tmp_path, "b", 0) == "record-rank0.seg"
    assert claimed(tmp_path, "a", 1) == "record-engine1-rank1.seg"


def test_data_parallel_engines_have_their_own_numbers(tmp_path: Path) -> None:
    assert claimed(tmp_path, "a", 0, data_parallel=1) == "record-engine1-rank0.seg"
    assert claimed(tmp_path, "a", 0, data_parallel=0) == "record-rank0.seg"
    assert claimed(tmp_path, "other", 0) == "record-engine2-rank0.seg"


def test_an_engine_that_is_started_again_writes_over_nothing(tmp_path: Path) -> None:
    assert claimed(tmp_path, "a", 0) == "record-rank0.seg"
    assert claimed(tmp_path, "a", 0) == "record-engine1-rank0.seg"


def _claim(trace: Path, instance: str, names: Any) -> None:
    names.put([instance, *(claimed(trace, instance, rank) for rank in (0, 1))])


def test_engines_that_begin_at_once_do_not_meet(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    names = context.SimpleQueue()
    engines = [context.Process(target=_claim, args=(tmp_path, f"e{i}", names)) for i in range(12)]
    for engine in engines:
        engine.start()
    found = [names.get() for _ in engines]
    for engine in engines:
        engine.join()
    assert len({name for _, *both in found for name in both}) == 24
    assert all(a.replace("rank0", "") == b.replace("rank1", "") for _, a, b in found)
    assert sorted(p.name for p in tmp_path.glob(".*")) == sorted(f".engine-{i}" for i in range(12))
