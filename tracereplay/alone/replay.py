"""``replay --mode isolated``: recorded calls executed one by one, with their results as a trace.

An operator's call has a counterpart if it was run. Every kernel of golden's steps has one at the same place in the
candidate's: with its outputs, or with the reason why it was not executed. Arguments are golden's, and are not
written again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

from tracereplay.alone import sandbox
from tracereplay.alone.constants import Constants
from tracereplay.alone.kernels import KernelRunner, is_custom, why_no_reference
from tracereplay.alone.operators import Operators, operator_requests, setup_for
from tracereplay.alone.sandbox import Limits, Outcome, Sandbox, alone_of
from tracereplay.errors import UsageError
from tracereplay.event import Call, Kernel, Site, Step
from tracereplay.gate import weights_directory
from tracereplay.launch.making import engine_header, making, replay_header
from tracereplay.launch.process import Launchable
from tracereplay.passes import ISOLATED, RECORD, REFERENCE
from tracereplay.recorder.options import KERNEL
from tracereplay.trace import (
    CallOfStep,
    SegmentWriter,
    TensorBytes,
    Trace,
    TraceDirectory,
    open_trace,
    segment_path,
)
from tracereplay.verdict.isolated import NOT_ASKED
from tracereplay.workload import Workload

__all__ = ["Selection", "replay_isolated"]

Report = Callable[[str], None]
Left = dict[tuple[str, str], tuple[int, int]]  # calls and rows that were not replayed, by site and reason
LIMITS = Limits()
EVERY = 5.0  # seconds between two lines of progress


@dataclass(frozen=True, slots=True)
class Selection:
    """Which calls are replayed.

    Args:
        site: glob of module paths.
        kernel: glob of kernels: ``aten.mm`` means all its overloads; operators are left out then. None: all.
    """

    site: str = "*"
    kernel: str | None = None

    def has_site(self, site: str) -> bool:
        """Whether calls at ``site`` are among them."""
        return fnmatchcase(site, self.site)

    def has(self, kernel: Kernel) -> bool:
        """Whether ``kernel`` is among them."""
        if not self.has_site(kernel.site):
            return False
        names = kernel.name, kernel.name.rpartition(".")[0]
        return self.kernel is None or any(fnmatchcase(name, self.kernel) for name in names)


def replay_isolated(
    engine: Launchable, golden: Path, out: Path, *, selection: Selection = Selection(), reference: bool = False,
    model: Path | None = None, limits: Limits = LIMITS, report: Report = lambda line: None,
) -> Path:  # fmt: skip
    """Runs golden's operators, and its kernels if recorded, in isolation in ``engine``'s environment.

    Args:
        engine: whose environment; no engine is started.
        golden: a recording.
        out: path of the candidate's trace to create.
        selection: which calls.
        reference: execute PyTorch's own kernels on float64 inputs too, as the pass ``reference``.
        model: checkpoint directory, if it has moved since recording.
        limits: of the child process.
        report: called with each line of progress.

    Raises:
        UsageError: nothing of golden is selected.
        Unsupported: calls of the engine's family cannot be run in isolation.
        EngineFailed: nothing can be executed in that environment.
    """
    family = alone_of(engine)
    with open_trace(golden) as source:
        _check(source, selection)
        checkpoint = weights_directory(source, model)
        workload = Workload(str(checkpoint), (), {}, None)  # nothing is generated
        header = replay_header(engine, workload, source.digest(), source.run.level)
        report(f"Starting a process for isolated calls under {engine.name}")
        setup = {
            sandbox.KERNEL: {
                "libraries": family.libraries if any(map(is_custom, _kernels(source, selection))) else (),
                "describe": family.describe,
            },
            sandbox.OPERATOR: None if selection.kernel is not None else setup_for(engine),
        }
        with Sandbox(engine, setup=setup, limits=limits) as child, making(out, header) as directory:
            directory.update_run(engine=engine_header(engine, child.info[sandbox.KERNEL]))
            left: Left = {}
            for rank in source.ranks(RECORD):
                operators = Operators(child, family.plan, source, checkpoint) if selection.kernel is None else None
                kernels = KernelRunner(child, Constants(source, rank, checkpoint), reference=reference)
                _Rank(source, rank, directory, selection, operators, kernels, report).replay(left)
            directory.update_run(not_replayed=[[site, *n, reason] for (site, reason), n in left.items()])
            for name in (ISOLATED, REFERENCE)[: 1 + reference]:
                directory.add_pass(name, {"requests": []})
    return out


def _check(golden: Trace, selection: Selection) -> None:
    golden.require_recording()
    if selection.kernel is None:
        calls = operator_requests(golden, selection.site, golden.ranks(RECORD)[0])
        if not any(True for _ in chain(calls, _kernels(golden, selection))):
            raise UsageError(f"{golden.path} contains no operator call at {selection.site!r}.")
    elif golden.run.level != KERNEL:
        raise UsageError(f"{golden.path} contains no kernels; record it with --level kernel.")
    elif not any(True for _ in _kernels(golden, selection)):
        raise UsageError(f"{golden.path} contains no kernel {selection.kernel!r} at {selection.site!r}.")


def _kernels(golden: Trace, selection: Selection) -> Iterator[Kernel]:
    for rank in golden.ranks(RECORD):
        for step in golden.segment(RECORD, rank).steps():
            yield from filter(selection.has, step.kernels)


@dataclass
class _Rank:
    """What one rank recorded, executed step by step into a segment for each pass."""

    golden: Trace
    rank: int
    directory: TraceDirectory
    selection: Selection
    operators: Operators | None
    kernels: KernelRunner
    report: Report
    done: int = 0
    told: float = field(default_factory=time.monotonic)

    def replay(self, left: Left) -> None:
        """Executes everything; counts in ``left``, by site and reason, the operators' calls that were not."""
        sites = self.golden.sites(RECORD, self.rank)
        meta = {"rank": self.rank, "world": len(self.golden.ranks(RECORD))}
        passes = [ISOLATED, REFERENCE] if self.kernels.reference else [ISOLATED]
        writers = [SegmentWriter(segment_path(self.directory.path, name, self.rank), meta) for name in passes]
        for writer in writers:
            writer.sites(sites.values())
        for step in self.golden.segment(RECORD, self.rank).steps():
            records = [_StepRecord(writer, sites) for writer in writers]
            for call in step.calls:
                if self.operators is not None and self.selection.has_site(call.site):
                    outcome = self.operators.run(sites[call.site], call)
                    records[0].add_call(call, outcome)
                    self._tell(outcome, step)
                    if outcome.status != "done":
                        calls, rows = left.get((call.site, outcome.reason), (0, 0))
                        left[call.site, outcome.reason] = calls + 1, rows + len(call.rows_out)
            for kernel in step.kernels:
                self._kernel(kernel, step, records)
            for record in records:
                record.commit(step)
        for writer in writers:
            writer.close({})

    def _kernel(self, kernel: Kernel, step: Step, records: Sequence[_StepRecord]) -> None:
        asked = self.selection.has(kernel)
        outcome = self.kernels.run(kernel) if asked else Outcome("not replayable", NOT_ASKED)
        for record, results in zip(records, (_RESULTS, _REFERENCES), strict=False):
            record.add_kernel(kernel, outcome, *results)
        self._tell(outcome, step)

    def _tell(self, outcome: Outcome, step: Step) -> None:
        self.done += outcome.status == "done"
        if time.monotonic() - self.told > EVERY:
            self.told = time.monotonic()
            self.report(f"Executed {self.done} calls, in step {step.number}")


_RESULTS = ("outputs", "written")  # of an outcome
_REFERENCES = ("reference", "reference_written")


class _StepRecord:
    """The calls and kernels of one step, as they are written.

    Args:
        writer: of the pass.
        sites: by their names.
    """

    def __init__(self, writer: SegmentWriter, sites: Mapping[str, Site]) -> None:
        self._writer, self._sites = writer, sites
        self._names: dict[tuple[str, str], int] = {}
        self._kernels: list[list[Any]] = []
        self._calls: list[CallOfStep] = []

    def add_call(self, call: Call, outcome: Outcome) -> None:
        """Adds what an operator gave, if it was run."""
        if outcome.status == "done":
            outputs, written = outcome.outputs["outputs"], outcome.outputs["written"]
            places = {i: self._writer.add(value) for i, value in enumerate(outputs)}
            changed = {int(i): self._writer.add(value) for i, value in written.items()}
            slot = self._sites[call.site].slot
            self._calls.append(CallOfStep(slot, call.number, call.rows_in, call.rows_out, {}, places, changed))

    def add_kernel(self, kernel: Kernel, outcome: Outcome, outputs: str, written: str) -> None:
        """Adds the counterpart of golden's ``kernel``; the names say which results of the outcome it holds."""
        found = outcome.outputs if outcome.status == "done" and outputs in outcome.outputs else None
        schema = kernel.schema if found is None else found["schema"]
        name = self._names.setdefault((kernel.name, schema), len(self._names))
        record = [name, self._sites[kernel.site].slot, kernel.call, kernel.parent, [], {}, [], [], [], ""]
        if found is None:
            record[9] = outcome.reason or why_no_reference(kernel) or str(outcome.outputs["no_reference"])
        else:
            record[6] = [self._argument(value) for value in found[outputs]]
            record[7] = [[i, self._writer.add(value)]
                         for i, value in zip(sorted(kernel.written), found[written], strict=True)]  # fmt: skip
        self._kernels.append(record)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, TensorBytes):
            return ["t", self._writer.add(value)]
        return ["l", [self._argument(item) for item in value]] if isinstance(value, list) else value

    def commit(self, step: Step) -> None:
        """Appends the step, under golden's number and with its rows."""
        names = [list(name) for name in self._names]
        kernels = {"names": names, "calls": self._kernels, "constants": []}
        self._writer.commit(step.number, step.rows, self._calls, [], [], kernels=kernels)
