"""Starting real engines for tests, one at a time: the one before is ended first.

Without the engines' environments these tests are skipped, but never in CI.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tracereplay.bisector.operators import bisect_operators
from tracereplay.comparator import compare_traces
from tracereplay.engines.request import PassRequest
from tracereplay.environments.registry import load_engine
from tracereplay.errors import EngineNotFound
from tracereplay.gate import workload_of
from tracereplay.launch import Configured
from tracereplay.launch.jobs import record_pass, recording_header, replay_passes
from tracereplay.launch.making import engine_header, replay_header
from tracereplay.launch.process import EngineProcess
from tracereplay.passes import RECORD
from tracereplay.recorder.options import Options
from tracereplay.trace import Trace, TraceDirectory, open_trace
from tracereplay.verdict import Verdict
from tracereplay.workload import Prompt, Workload

ROOT = Path(__file__).parents[2]
TINY = ROOT / "fixtures" / "tiny-llama"
GOLDEN = ROOT / "fixtures" / "tiny-llama-v0.trace"
FAULTS = Path(__file__).parent / "faults"
EAGER: Mapping[str, Any] = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8}


def random_model(out: Path, family: str, *options: str) -> Path:
    """Makes a model of random weights in ``out`` (`fixtures/make_random_model.py`), and returns that."""
    script = ROOT / "fixtures" / "make_random_model.py"
    subprocess.run([sys.executable, str(script), family, str(out), *options], check=True)
    return out


def prompts_of(trace: Trace) -> tuple[Prompt, ...]:
    """The requests of a trace of ours, to be served again."""
    return tuple(Prompt(p.token_ids, p.text, p.sampling) for p in trace.run.prompts)


class Running:
    """An engine that is running, and what tests do with it."""

    def __init__(
        self, process: EngineProcess, launch: Configured, model: Path, folder: Path, settings: Mapping[str, Any]
    ) -> None:
        self.process = process
        self._launch = launch
        self._model = model
        self.settings = settings
        self.folder = folder
        self._made = 0

    def generate(self, *prompts: Prompt) -> list[dict[str, Any]]:
        """Results without recording."""
        results: list[dict[str, Any]] = self.process.generate([p.as_dict() for p in prompts])["requests"]
        return results

    def record(
        self, *prompts: Prompt, settings: Mapping[str, Any] = EAGER, folder: Path | None = None,
        options: Options = Options(),
    ) -> Trace:  # fmt: skip
        given = Workload(str(self._model), prompts, settings)
        workload, header = recording_header(self._launch, given, options.level)
        directory = self._directory({**header, **options.header()}, folder)
        request = PassRequest(directory.path.resolve(), RECORD, options=options)
        record_pass(self.process, directory, workload, request)
        directory.complete()
        return open_trace(directory.path)

    def replay(self, golden: Trace) -> Trace:
        workload = workload_of(golden, {}, self._model)
        directory = self._directory(replay_header(self._launch, workload, golden.digest(), golden.run.level))
        replay_passes(self.process, directory, golden, workload)
        directory.complete()
        return open_trace(directory.path)

    def verdict(self, golden: Trace) -> Verdict:
        return compare_traces(golden, self.replay(golden))

    def bisect_operators(self, golden: Trace, **options: Any) -> Verdict:
        """By operators, in this engine start."""
        self._made += 1
        folder = self.folder / f"bisection-{self._made}"
        return bisect_operators(
            self._launch, golden.path, folder, process=self.process, model=self._model, **options
        )

    def _directory(self, header: Mapping[str, Any], folder: Path | None = None) -> TraceDirectory:
        self._made += 1
        path = (folder or self.folder) / f"{self._launch.name}-{self._made}.trace"
        directory = TraceDirectory(path, header)
        directory.update_run(engine=engine_header(self._launch, self.process.info))
        return directory


class Engines:
    """Starts engines, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: tuple[object, Running] | None = None

    def start(
        self, name: str, model: Path = TINY, env: Mapping[str, str] | None = None, **settings: Any
    ) -> Running:
        key = (name, model, tuple(sorted((env or {}).items())), tuple(sorted(settings.items())))
        if self._running is None or self._running[0] != key:
            self.stop()
            self._running = (key, self._start(name, model, env or {}, settings))
        return self._running[1]

    def _start(self, name: str, model: Path, env: Mapping[str, str], settings: Mapping[str, Any]) -> Running:
        engine = find_engine(name)
        launch = Configured(name, engine.python, {**engine.env, **env}, engine.settings)
        process = EngineProcess(launch, model=model, settings={**EAGER, **settings})
        folder = self._folder / f"{name}-{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        return Running(process, launch, model, folder, {**EAGER, **settings})

    def stop(self) -> None:
        if self._running is not None:
            self._running[1].process.close()
            self._running = None


def find_engine(name: str) -> Any:
    """A registered engine; its absence skips the test, and fails it in CI."""
    try:
        return load_engine(name)
    except EngineNotFound as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must run the real engines: {error}")
        pytest.skip(str(error))


def token_ids(length: int, seed: int = 0) -> tuple[int, ...]:
    """A prompt of printable bytes, for the tiny model's byte tokenizer."""
    return tuple(32 + (i * 7 + seed * 13) % 90 for i in range(length))


def greedy(*lengths: int, max_tokens: int = 8, **sampling: Any) -> list[Prompt]:
    """Greedy prompts of the given lengths, different ones."""
    given = {"max_tokens": max_tokens, "temperature": 0.0, "logprobs": 0, "ignore_eos": True, **sampling}
    return [Prompt(token_ids(n, seed), None, given) for seed, n in enumerate(lengths)]
