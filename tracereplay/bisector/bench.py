"""One engine for many passes over one golden trace, started when first needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tracereplay.bisector.journal import Journal, Subject
from tracereplay.cancellation import Cancellation
from tracereplay.engines.request import Cancel, Feed, Inject, PassRequest
from tracereplay.errors import UsageError
from tracereplay.gate import workload_of
from tracereplay.launch import EngineProcess, Launchable
from tracereplay.launch.jobs import record_pass, replay_passes
from tracereplay.launch.lengths import as_long_as
from tracereplay.launch.making import engine_header, making, replay_header
from tracereplay.passes import CANCELLED, INJECTED, INJECTED_AGAIN, RECORD
from tracereplay.recorder.options import Options
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.place import passing_trace, remove_trace
from tracereplay.workload import Workload

__all__ = ["Bench", "Report", "begun", "golden_workload"]

Report = Callable[[str], None]


def golden_workload(golden: Trace, settings: Mapping[str, Any], model: Path | None) -> Workload:
    """Golden's workload as the candidate runs it, with its weights checked.

    Raises:
        UsageError: golden is not a recording, or has no logprobs.
        OtherWeights: the model differs from golden's.
        WorkloadError: there is no model.
    """
    golden.require_recording()
    work = workload_of(golden, settings, model)
    sampled = (s for step in golden.records(RECORD) for s in step.sampled)
    if all(s.logprob is None for s in sampled):
        raise UsageError(
            f"{golden.path} has no logprobs, which a bisection needs; record it again with --logprobs 0."
        )
    return as_long_as(golden, work)


@contextlib.contextmanager
def begun(
    golden: Path, folder: Path, settings: Mapping[str, Any] | None, model: Path | None, subject: Subject
) -> Iterator[tuple[Trace, Workload, Journal]]:
    """Begins a bisection: opens golden, and returns it, the candidate's workload and the journal in ``folder``.

    Args:
        golden: path of the golden trace.
        folder: where measurements are kept; created if missing.
        settings: engine arguments that override those of the golden workload.
        model: checkpoint directory, if it has moved since recording.
        subject: what else must be unchanged for an interrupted bisection to be resumed.

    Raises:
        UsageError: see `golden_workload`; or ``folder`` belongs to another bisection.
    """
    with open_trace(golden) as source:
        work = golden_workload(source, settings or {}, model)
        folder.mkdir(parents=True, exist_ok=True)
        common = {"golden": source.digest(), "settings": work.settings, "weights": work.weights}
        yield source, work, Journal(folder, {**subject.as_dict(), **common})


class Bench:
    """Runs passes.

    Args:
        engine: the candidate.
        golden: the golden trace.
        workload: what is generated; see `golden_workload`.
        folder: where traces go.
        log: file for the engine's output.
        report: called with each line of progress.
        process: the engine, if it is already running; it is left running.
    """

    def __init__(
        self, engine: Launchable, golden: Trace, workload: Workload, folder: Path, log: Path | None,
        report: Report, process: EngineProcess | None = None,
    ) -> None:  # fmt: skip
        self._engine, self._golden, self._workload = engine, golden, workload
        self._folder, self._log, self._report = folder, log, report
        self._process, self._borrowed = process, process is not None
        self.starts = 0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and not self._borrowed:
            self._process.close()

    @property
    def candidate(self) -> Path:
        """The trace of the replay: rerun and injected pass."""
        return self._folder / "candidate.trace"

    def replay(self) -> Path:
        """Makes `candidate`, unless a complete one exists."""
        if self.candidate.exists():
            with open_trace(self.candidate) as trace:
                if trace.complete and INJECTED in trace.passes:
                    return self.candidate
        header = replay_header(self._engine, self._workload, self._golden.digest())
        remove_trace(self.candidate, self._golden.read_from)
        with making(self.candidate, header) as directory:
            process = self._started()
            directory.update_run(engine=engine_header(self._engine, process.info))
            replay_passes(process, directory, self._golden, self._workload, report=self._report)
        return self.candidate

    @contextlib.contextmanager
    def cancelled(self, selection: Cancellation, options: Options = Options()) -> Iterator[Trace]:
        """A free run with forced tokens in which ``selection`` is cancelled; its trace goes with the context.

        Args:
            selection: operators and edges.
            options: how much of it is recorded.
        """
        with self._pass(CANCELLED, Cancel(selection, self.candidate.resolve()), options) as trace:
            yield trace

    @contextlib.contextmanager
    def injected_again(self) -> Iterator[Trace]:
        """A second injected pass, by the name ``injectedtwice``."""
        with self._pass(INJECTED_AGAIN, Inject()) as trace:
            yield trace

    @contextlib.contextmanager
    def _pass(self, name: str, feed: Feed, options: Options = Options()) -> Iterator[Trace]:
        process = self._started()
        header = replay_header(self._engine, self._workload, self._golden.digest())
        with passing_trace(self._folder / "trial.trace", self._golden.read_from) as path:
            with making(path, header) as directory:
                request = PassRequest(path.resolve(), name, self._golden.local_path(), feed, options)
                record_pass(process, directory, self._workload, request)
            with open_trace(path) as trace:
                yield trace

    def _started(self) -> EngineProcess:
        if self._process is None:
            self._report(f"Starting the engine {self._engine.name}")
            self._process = EngineProcess(
                self._engine, model=Path(self._workload.model).resolve(), settings=self._workload.settings,
                log=self._log, inherited=self._workload.inherited,
            )  # fmt: skip
            self.starts += 1
            self._check_unchanged(self._process.info)
        return self._process

    def _check_unchanged(self, info: Mapping[str, Any]) -> None:
        """An earlier start measured the own errors; they are this engine's only if it is the same."""
        if not self.candidate.exists():
            return
        with open_trace(self.candidate) as trace:
            before = trace.run.engine
            if not trace.complete:
                return
        changed = [k for k in ("versions", "settings", "device", "environment") if before.get(k) != info.get(k)]
        if changed:
            raise UsageError(
                f"The engine {self._engine.name} is not as it was when {self._folder} was made: its {changed[0]} "
                "changed. Give another --work directory."
            )
