"""Models through engines: recording and replaying in engines that run, and what benchmarks tell of a verdict."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracereplay.comparator import compare_traces
from tracereplay.engines.request import PassRequest
from tracereplay.environments.registry import load_engine
from tracereplay.gate import workload_of
from tracereplay.launch import Configured
from tracereplay.launch.jobs import record_pass, recording_header, replay_into
from tracereplay.launch.making import engine_header, making, replay_header
from tracereplay.launch.process import EngineProcess, Launchable
from tracereplay.passes import RECORD
from tracereplay.trace import Trace, open_trace
from tracereplay.verdict import Verdict
from tracereplay.workload import Prompt, Workload

__all__ = [
    "FAMILIES", "HERE", "PRESETS", "SETTINGS", "Size", "find", "kept", "record", "replay", "sentence",
    "short", "started", "token_ids", "write_model",
]  # fmt: skip

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "fixtures"))
from families import FAMILIES  # noqa: E402
from make_random_model import PRESETS, Size, write_model  # noqa: E402

SETTINGS: Mapping[str, Any] = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8}
# V1 in a single process starts faster. V0's latent attention (DeepSeek) needs a package that the CPU build lacks;
# without it, keys and values are expanded as in other attention.
V0, V1 = {"VLLM_MLA_DISABLE": "1"}, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def find(name: str, **settings: Any) -> Configured:
    """A registered engine, with engine arguments besides its own and `SETTINGS`."""
    engine = load_engine(name)
    env = {**engine.env, **(V0 if name == "v0" else V1)}
    return Configured(name, engine.python, env, {**engine.settings, **settings}, engine.family)


def started(engine: Configured, model: Path, folder: Path) -> EngineProcess:
    """The engine in a process, whose log stands in ``folder``."""
    return EngineProcess(
        engine, model=model, settings={**SETTINGS, **engine.settings}, log=folder / f"{engine.name}.log"
    )


def record(process: EngineProcess, engine: Launchable, model: Path, prompts: Sequence[Prompt], out: Path) -> Trace:
    """Records prompts in a running engine."""
    workload, header = recording_header(engine, Workload(str(model), tuple(prompts), SETTINGS))
    with making(out, header) as directory:
        directory.update_run(engine=engine_header(engine, process.info))
        record_pass(process, directory, workload, PassRequest(out.resolve(), RECORD))
    return open_trace(out)


def replay(process: EngineProcess, engine: Launchable, golden: Trace, model: Path, out: Path) -> Verdict:
    """Replays ``golden`` in a running engine and judges it."""
    workload = workload_of(golden, {}, model)
    workload = replace(workload, settings={**workload.settings, **engine.settings})
    header = replay_header(engine, workload, golden.digest(), golden.run.level)
    with making(out, header) as directory:
        replay_into(process, directory, engine, golden, workload)
    return compare_traces(golden, open_trace(out))


def token_ids(length: int, seed: int) -> tuple[int, ...]:
    """A prompt of printable bytes."""
    return tuple(32 + (i * 7 + seed * 13) % 90 for i in range(length))


def sentence(error: Exception) -> str:
    """What went wrong, without the engine's log; where a log or a traceback follows, its last line."""
    first, _, log = str(error).strip().partition("\n")
    return short(f"{first} {log.rpartition(chr(10))[2].strip()}" if first.endswith(":") else first)


def short(text: str, limit: int = 180) -> str:
    """Its first sentence, without what would break a table, and without its end where it is long."""
    first = text.partition(". ")[0].rstrip(".").replace("|", "/")
    return first if len(first) <= limit else f"{first[: limit - 3]}..."


def kept(path: Path, head: Iterable[str]) -> list[list[str]]:
    """The rows of a page that was written before, of its table with that many columns."""
    width = len(tuple(head))
    lines = path.read_text().splitlines() if path.exists() else []
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    return [row for row in cells if len(row) == width][1:]
