"""One row: what it names, its replay, its verdict, and what is kept of them."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from tracereplay.alone.replay import replay_isolated
from tracereplay.checks.engine import KeptEngine, Plan, planned
from tracereplay.checks.golden import UPDATE, misfits, opened_golden, other_device, without_a_run
from tracereplay.checks.lock import Locked
from tracereplay.checks.results import Result, code_of
from tracereplay.checks.table import STRICT, Check, CheckFile
from tracereplay.comparator import Policy, compare_traces, load_policy
from tracereplay.comparator.judging.outcome import judge_unrun
from tracereplay.environments import Engine, load_engine
from tracereplay.errors import EngineFailed, OtherWeights, TracereplayError, UsageError
from tracereplay.storage.atomic import written
from tracereplay.storage.checkpoint import check_model
from tracereplay.storage.files import is_url
from tracereplay.store.cache import addressed
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.place import remove_trace
from tracereplay.verdict import Mode, Verdict

__all__ = [
    "Ready", "Task", "failed", "judged", "made", "plan_of", "policy_named", "prepared", "replayed", "result_of",
]  # fmt: skip

Report = Callable[[str], None]
_NO_FILE = re.compile("[^A-Za-z0-9._-]+")  # what stands in a row's name and not in a file's


@dataclass(frozen=True, slots=True)
class Ready:
    """A row of which all that it names is there."""

    check: Check
    engine: Engine
    policy: Policy


@dataclass(frozen=True, slots=True)
class Task:
    """A row that is to be run.

    Args:
        number: of the row among those that are run, from 1.
        row: the row.
        locked: what ``checks.lock`` says of its golden trace.
        plan: what replaying golden takes; None where that is not known yet, or will fail.
        keep: an existing directory for the candidate's trace and the verdict; None: they are not kept.
    """

    number: int
    row: Ready
    locked: Locked | None = None
    plan: Plan | None = None
    keep: Path | None = None

    @property
    def name(self) -> str:
        return self.row.check.name

    def kept(self, ending: str) -> Path | None:
        """Where what ends like that is kept."""
        stem = f"{self.number}-{_NO_FILE.sub('-', self.name)[:80]}"
        return None if self.keep is None else self.keep / f"{stem}{ending}"


def prepared(file: CheckFile, checks: Sequence[Check], *, made: bool = False) -> tuple[Ready, ...]:
    """Rows with what they name; golden traces need not be there that are ``made`` from prompts.

    Raises:
        UsageError: something is not there; the message names row and key.
    """
    return tuple(_prepared(file, check, made) for check in checks)


def _prepared(file: CheckFile, check: Check, made: bool) -> Ready:
    def found(key: str, look: Callable[[], object]) -> object:
        try:
            return look()
        except UsageError as error:
            raise UsageError(f"The key {file.where(check, key)}: {error}") from error

    if not is_url(check.golden) and not os.path.lexists(check.golden) and not (made and check.prompts):
        raise UsageError(
            f"The key {file.where(check, 'golden')}: there is no trace {check.golden}; record it with "
            f"`tracereplay record -o`, or give the row 'prompts' and use {UPDATE}."
        )
    if check.prompts is not None and not check.prompts.is_file():
        raise UsageError(f"The key {file.where(check, 'prompts')}: there is no file {check.prompts}.")
    engine = cast(Engine, found("engine", partial(load_engine, check.engine)))
    policy = cast(Policy, found("policy", partial(policy_named, check.policy)))
    if check.model is not None:
        found("model", partial(check_model, check.model))
    return Ready(check, engine, policy)


def policy_named(given: str | None) -> Policy:
    """The policy that a row names: a file's, `STRICT`, or the default one.

    Raises:
        UsageError: see `load_policy`.
    """
    if given == STRICT:
        return Policy().made_strict()
    return Policy() if given is None else load_policy(Path(given))


def plan_of(row: Ready, golden: Trace) -> Plan:
    """What replaying golden for a row takes.

    Raises:
        TracereplayError: see `engine.planned`.
    """
    return planned(
        row.engine, golden, row.check.settings, row.check.model, injected=row.check.mode != "rerun",
        other_weights="weights" in row.check.accept,
    )  # fmt: skip


def result_of(task: Task, engine: KeptEngine, report: Report, *, again: bool = False) -> Result:
    """Runs a row.

    Args:
        task: the row.
        engine: serves it, if an engine is needed.
        report: called with each line of progress.
        again: try once more where the engine failed: beside others it may have lacked memory.
    """
    begun = time.monotonic()
    try:
        verdict = _verdict(task, engine, report, again)
        return judged(task, verdict, time.monotonic() - begun)
    except Exception as error:  # the other rows are run all the same
        return failed(task, error, time.monotonic() - begun)


def _verdict(task: Task, engine: KeptEngine, report: Report, again: bool) -> Verdict:
    out = task.kept(".trace")
    try:
        return replayed(task.row, engine, task.locked, out, report, task.plan)
    except EngineFailed as error:
        if not again:
            raise
        report(f"It is tried once more: {error.brief}")
        engine.forget()
        if out is not None:
            remove_trace(out)
        return replayed(task.row, engine, task.locked, out, report, task.plan)


def judged(task: Task, verdict: Verdict, seconds: float) -> Result:
    """A row's result, and its verdict in a file where it is kept.

    Raises:
        OSError: the file cannot be written.
    """
    file = task.kept(".json")
    if file is not None:
        with written(file) as out:
            out.write((json.dumps(verdict.as_dict(), indent=2, allow_nan=False, default=str) + "\n").encode())
    check = task.row.check
    return Result(check, code_of(check, verdict), seconds, verdict, kept=file, traces=_traces(task))


def _traces(task: Task) -> tuple[Path, Path] | None:
    """Golden's and the candidate's, if that was made and is kept."""
    candidate = task.kept(".trace")
    if candidate is None or not candidate.exists():
        return None
    with opened_golden(task.row.check, lambda line: None) as golden:
        return golden.local_path(), candidate


def failed(task: Task, error: Exception, seconds: float) -> Result:
    """The result of a row without a verdict."""

    def result(code: int, words: str, last_lines: str = "") -> Result:
        return Result(task.row.check, code, seconds, error=words, last_lines=last_lines)

    if isinstance(error, TracereplayError):
        last_lines = error.last_lines if isinstance(error, EngineFailed) else ""
        return result(error.exit_code, error.brief, last_lines)
    if isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return result(4, f"This machine failed: {what}.")
    return result(70, f"This is a defect of tracereplay: {type(error).__name__}: {error}")


def replayed(
    row: Ready, engine: KeptEngine, locked: Locked | None, out: Path | None, report: Report,
    plan: Plan | None = None,
) -> Verdict:  # fmt: skip
    """The verdict of a row.

    Args:
        row: the row.
        engine: serves it, if an engine is needed.
        locked: what ``checks.lock`` says of its golden trace.
        out: where the candidate's trace goes; None: nowhere.
        report: called with each line of progress.
        plan: what replaying golden takes, if that is known already.

    Raises:
        TracereplayError: there is none.
    """
    with opened_golden(row.check, report) as golden, _room(out) as place:
        verdict = made(row, engine, locked, golden, place, report, plan)
        if verdict is not None:
            return verdict
        report("Comparing")
        return addressed(compare_traces(golden, place, row.policy, model=row.check.model))


def made(
    row: Ready, engine: KeptEngine, locked: Locked | None, golden: Trace, out: Path, report: Report,
    plan: Plan | None = None,
) -> Verdict | None:  # fmt: skip
    """Makes the candidate's trace at ``out``; or says the verdict, where golden cannot be compared with it.

    Raises:
        TracereplayError: neither can be had.
    """
    mode = cast(Mode, row.check.mode)
    reasons = misfits(row.check, golden, locked)
    if not reasons:
        try:
            reasons = _run(row, plan, engine, golden, out, report)
        except OtherWeights as found:
            return judge_unrun(golden, row.engine.name, found, mode)
    return without_a_run(golden, row.engine.name, mode, reasons) if reasons else None


def _run(row: Ready, plan: Plan | None, engine: KeptEngine, golden: Trace, out: Path, report: Report) -> list[str]:
    """Makes the candidate's trace; or says why golden cannot be compared with it, in sentences."""
    if row.check.mode == "isolated":
        replay_isolated(row.engine, golden.local_path(), out, model=row.check.model, report=report)
        with open_trace(out) as candidate:
            return other_device(row.check, golden, candidate.run.engine)
    plan = plan or plan_of(row, golden)
    if reasons := other_device(row.check, golden, engine.started(plan)):
        return reasons
    engine.replay(plan, golden, out)
    return []


@contextmanager
def _room(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="tracereplay-") as folder:
        yield Path(folder) / "candidate.trace"
