"""``replay --mode isolated``: recorded calls executed one by one, and what they gave as a trace.

Every kernel of golden's steps has a counterpart at its place in the candidate's: with the outputs that it gave, or
with the reason why it was not executed. Arguments are golden's, and are not written again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tracereplay.errors import TraceError, UsageError
from tracereplay.event import Kernel, Step
from tracereplay.isolated import ISOLATED, NOT_ASKED, REFERENCE
from tracereplay.launch.isolated.constants import Constants
from tracereplay.launch.isolated.kernels import KernelRunner, needs_vllm, why_no_reference
from tracereplay.launch.jobs import KERNEL, level_of, run_header
from tracereplay.launch.process import Launchable
from tracereplay.launch.sandbox import Limits, Outcome, Sandbox
from tracereplay.trace import SegmentWriter, TensorBytes, Trace, TraceDirectory, open_trace, segment_path
from tracereplay.workload import Workload

__all__ = ["Selection", "replay_isolated"]

Report = Callable[[str], None]
LIMITS = Limits()
EVERY = 5.0  # seconds between two lines of progress


@dataclass(frozen=True, slots=True)
class Selection:
    """Which calls are replayed.

    Args:
        site: glob of module paths.
        kernel: glob of kernels: ``aten.mm`` is all its overloads; None: all.
    """

    site: str = "*"
    kernel: str | None = None

    def has(self, kernel: Kernel) -> bool:
        """Whether ``kernel`` is among them."""
        if not fnmatchcase(kernel.site, self.site):
            return False
        names = kernel.name, kernel.name.rpartition(".")[0]
        return self.kernel is None or any(fnmatchcase(name, self.kernel) for name in names)


def replay_isolated(
    engine: Launchable, golden: Path, out: Path, *, selection: Selection = Selection(), reference: bool = False,
    model: Path | None = None, force: bool = False, limits: Limits = LIMITS, report: Report = lambda line: None,
) -> Path:  # fmt: skip
    """Executes golden's kernels alone in ``engine``'s environment, into a new trace at ``out``.

    Args:
        engine: whose environment; no engine is started.
        golden: a recording with kernels.
        out: path of the candidate's trace.
        selection: which calls.
        reference: execute PyTorch's own kernels on float64 inputs too, as the pass ``reference``.
        model: checkpoint, where it is not where it was recorded.
        force: replace what is at ``out``.
        limits: of the child that executes.
        report: is told what is being done.

    Raises:
        UsageError: golden has no kernels, or none of them is selected.
        EngineFailed: nothing can be executed in that environment.
    """
    with closing(open_trace(golden)) as source:
        _check(source, selection)
        workload = Workload.from_dict(source.run["workload"])
        workload = replace(workload, model=str(model or workload.model))
        run = {**run_header("replay", engine, workload, level_of(source.run)), "golden": source.digest()}
        report(f"Starting a process for single calls under {engine.name}")
        with Sandbox(engine, setup={"kernel": {"vllm": _need_vllm(source, selection)}}, limits=limits) as sandbox:
            directory = TraceDirectory(out, run, force=force)
            directory.update_run(engine={"name": engine.name, **sandbox.info["kernel"]})
            for rank in source.ranks("record"):
                runner = KernelRunner(sandbox, Constants(source, rank, model), reference=reference)
                _replay_rank(source, rank, directory, selection, runner, report)
            for name in (ISOLATED, REFERENCE)[: 1 + reference]:
                directory.add_pass(name, {"requests": []})
            directory.complete()
    return out


def _check(golden: Trace, selection: Selection) -> None:
    if golden.passes != ("record",):
        raise TraceError(f"{golden.path} is not a recording: it has the passes {list(golden.passes)}.")
    if level_of(golden.run) != KERNEL:
        raise UsageError(f"{golden.path} holds no kernels; record it with --level kernel.")
    if not any(True for _ in _selected(golden, selection)):
        asked = f" named {selection.kernel!r}" if selection.kernel else ""
        raise UsageError(f"{golden.path} holds no kernel{asked} at a site {selection.site!r}.")


def _selected(golden: Trace, selection: Selection) -> Iterator[Kernel]:
    for rank in golden.ranks("record"):
        for step in golden.segment("record", rank).steps():
            yield from filter(selection.has, step.kernels)


def _need_vllm(golden: Trace, selection: Selection) -> bool:
    return any(map(needs_vllm, _selected(golden, selection)))


def _replay_rank(
    golden: Trace, rank: int, directory: TraceDirectory, selection: Selection, runner: KernelRunner, report: Report
) -> None:
    """Executes what one rank recorded, step by step, into a segment for each pass."""
    steps = list(golden.segment("record", rank).steps())
    passes = [ISOLATED, REFERENCE] if runner.reference else [ISOLATED]
    meta = {"rank": rank, "world": len(golden.ranks("record"))}
    writers = [SegmentWriter(segment_path(directory.path, name, rank), meta) for name in passes]
    sites = golden.sites("record", rank)
    told, done = time.monotonic(), 0
    for writer in writers:
        writer.sites(sites.values())
    for place, step in enumerate(steps):
        records = [_StepRecord(writer, {name: site.slot for name, site in sites.items()}) for writer in writers]
        for kernel in step.kernels:
            outcome = runner.run(kernel) if selection.has(kernel) else Outcome("not replayable", NOT_ASKED)
            for record, results in zip(records, (_RESULTS, _REFERENCES), strict=False):
                record.add(kernel, outcome, *results)
            done += outcome.status == "done"
            if time.monotonic() - told > EVERY:
                told = time.monotonic()
                report(f"Executed {done} calls, in step {place + 1} of {len(steps)}")
        for record in records:
            record.commit(step)
    for writer in writers:
        writer.close({})


_RESULTS = ("outputs", "written")  # of an outcome
_REFERENCES = ("reference", "reference_written")


class _StepRecord:
    """The kernels of one step, as they are written (`trace.kernels`).

    Args:
        writer: of the pass.
        slots: of the sites, by their names.
    """

    def __init__(self, writer: SegmentWriter, slots: Mapping[str, int]) -> None:
        self._writer, self._slots = writer, slots
        self._names: dict[tuple[str, str], int] = {}
        self._calls: list[list[Any]] = []

    def add(self, kernel: Kernel, outcome: Outcome, outputs: str, written: str) -> None:
        """Adds the counterpart of golden's ``kernel``; the names say which results of the outcome it holds."""
        found = outcome.outputs if outcome.status == "done" and outputs in outcome.outputs else None
        schema = kernel.schema if found is None else found["schema"]
        name = self._names.setdefault((kernel.name, schema), len(self._names))
        record = [name, self._slots[kernel.site], kernel.call, kernel.parent, [], {}, [], [], [], ""]
        if found is None:
            record[9] = outcome.reason or why_no_reference(kernel) or str(outcome.outputs["no_reference"])
        else:
            record[6] = [self._argument(value) for value in found[outputs]]
            record[7] = [[i, self._writer.add(value)]
                         for i, value in zip(sorted(kernel.written), found[written], strict=True)]  # fmt: skip
        self._calls.append(record)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, TensorBytes):
            return ["t", self._writer.add(value)]
        return ["l", [self._argument(item) for item in value]] if isinstance(value, list) else value

    def commit(self, step: Step) -> None:
        """Appends the step, under golden's number and with its rows."""
        names = [list(name) for name in self._names]
        kernels = {"names": names, "calls": self._calls, "constants": []}
        self._writer.commit(step.number, step.rows, [], [], [], kernels=kernels)
