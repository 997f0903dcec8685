"""Runs the checks of a file: all that can be known first, then engine after engine."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import cast

from tracereplay.alone.replay import replay_isolated
from tracereplay.checks.engine import KeptEngine, Plan, planned
from tracereplay.checks.golden import UPDATE, misfits, opened_golden, other_device, without_a_run
from tracereplay.checks.lock import Locked, read_lock
from tracereplay.checks.results import Result, Results, code_of
from tracereplay.checks.table import STRICT, Check, CheckFile, load_checks, selected
from tracereplay.comparator import Policy, compare_traces, load_policy
from tracereplay.comparator.judging.outcome import judge_unrun
from tracereplay.environments import Engine, load_engine
from tracereplay.errors import EngineFailed, OtherWeights, TracereplayError, UsageError
from tracereplay.storage.atomic import written
from tracereplay.storage.checkpoint import check_model
from tracereplay.trace import Trace, open_trace
from tracereplay.verdict import Mode, Verdict

__all__ = ["Ready", "check", "policy_named", "prepared", "replayed"]

Report = Callable[[str], None]
_NO_FILE = re.compile("[^A-Za-z0-9._-]+")  # what stands in a row's name and not in a file's


@dataclass(frozen=True, slots=True)
class Ready:
    """A row of which all that it names is there."""

    check: Check
    engine: Engine
    policy: Policy


def check(
    file: CheckFile | str | PathLike[str], *, only: Sequence[str] = (), keep: Path | None = None,
    log: Path | None = None, engine: KeptEngine | None = None, report: Report = lambda line: None,
) -> Results:  # fmt: skip
    """Runs the checks of a file: ``tracereplay check``. Rows that one engine start can serve share it.

    >>> rows = 'check = [{name = "same", golden = "golden.trace", engine = "toy"}]'
    >>> _ = Path("checks.toml").write_text(rows)
    >>> results = tracereplay.check("checks.toml")
    >>> results.exit_code, results.results[0].verdict.matches
    (0, True)

    Args:
        file: the checks, or their TOML file.
        only: globs of names of rows; all rows, if there are none.
        keep: an existing directory for candidates' traces and verdicts, ``NAME.trace`` and ``NAME.json``.
        log: file for what engines print.
        engine: serves the rows and stays as they leave it; by default one that is closed in the end.
        report: called with each line of progress.

    Raises:
        UsageError: the file is wrong, or names what is not there; nothing was started then. What goes wrong with
            a row later on is its result.
    """
    checks = file if isinstance(file, CheckFile) else load_checks(Path(file))
    rows = prepared(checks, selected(checks, only))
    locked = read_lock(checks.lock)
    results: dict[str, Result] = {}
    with nullcontext(engine) if engine is not None else KeptEngine(log, report) as kept_engine:
        for number, row, plan in _by_engine(rows, report):
            name = row.check.name
            report(f"Check {len(results) + 1} of {len(rows)}: {name}")
            kept = None if keep is None else keep / f"{number}-{_NO_FILE.sub('-', name)[:80]}"
            results[name] = _result(row, plan, kept_engine, locked.get(name), kept, report)
    return Results(checks.path, tuple(results[row.check.name] for row in rows))


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

    if "://" not in check.golden and not os.path.lexists(check.golden) and not (made and check.prompts):
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


def _by_engine(rows: Sequence[Ready], report: Report) -> Iterator[tuple[int, Ready, Plan | None]]:
    """The rows with their numbers, those that share an engine start one after the other, else in their order."""
    groups: dict[str, list[tuple[int, Ready, Plan | None]]] = {}
    for number, row in enumerate(rows, 1):
        plan = _planned(row, report)
        groups.setdefault(f"alone {number}" if plan is None else plan.start, []).append((number, row, plan))
    for group in groups.values():
        yield from group


def _planned(row: Ready, report: Report) -> Plan | None:
    """None where there is none, whatever the reason: the row's result will say it."""
    if row.check.mode == "isolated":
        return None
    try:
        with opened_golden(row.check, report) as golden:
            return _plan(row, golden)
    except TracereplayError:
        return None


def _plan(row: Ready, golden: Trace) -> Plan:
    return planned(
        row.engine, golden, row.check.settings, row.check.model, injected=row.check.mode != "rerun",
        other_weights="weights" in row.check.accept,
    )  # fmt: skip


def _result(
    row: Ready, plan: Plan | None, engine: KeptEngine, locked: Locked | None, kept: Path | None, report: Report
) -> Result:
    begun = time.monotonic()

    def failed(code: int, error: str, last_lines: str = "") -> Result:
        return Result(row.check, code, time.monotonic() - begun, error=error, last_lines=last_lines)

    try:
        verdict = replayed(row, engine, locked, kept and kept.with_name(f"{kept.name}.trace"), report, plan)
        file = kept and _keep(kept.with_name(f"{kept.name}.json"), verdict)
    except TracereplayError as error:
        return failed(error.exit_code, error.brief, error.last_lines if isinstance(error, EngineFailed) else "")
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return failed(4, f"This machine failed: {what}.")
    except Exception as error:  # the other rows are run all the same
        return failed(70, f"This is a defect of tracereplay: {type(error).__name__}: {error}")
    seconds = time.monotonic() - begun
    return Result(row.check, code_of(row.check, verdict), seconds, verdict, kept=file, traces=_traces(row, kept))


def _traces(row: Ready, kept: Path | None) -> tuple[Path, Path] | None:
    """Golden's and the candidate's, if that was made."""
    if kept is None or not (candidate := kept.with_name(f"{kept.name}.trace")).exists():
        return None
    with opened_golden(row.check, lambda line: None) as golden:
        return golden.local_path(), candidate


def _keep(file: Path, verdict: Verdict) -> Path:
    with written(file) as out:
        out.write((json.dumps(verdict.as_dict(), indent=2, allow_nan=False, default=str) + "\n").encode())
    return file


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
    mode = cast(Mode, row.check.mode)
    with opened_golden(row.check, report) as golden, _room(out) as place:
        reasons = misfits(row.check, golden, locked)
        if not reasons:
            try:
                reasons = _run(row, plan, engine, golden, place, report)
            except OtherWeights as found:
                return judge_unrun(golden, row.engine.name, found, mode)
        if reasons:
            return without_a_run(golden, row.engine.name, mode, reasons)
        report("Comparing")
        return compare_traces(golden, place, row.policy, model=row.check.model)


def _run(row: Ready, plan: Plan | None, engine: KeptEngine, golden: Trace, out: Path, report: Report) -> list[str]:
    """Makes the candidate's trace; or says why golden cannot be compared with it, in sentences."""
    if row.check.mode == "isolated":
        replay_isolated(row.engine, golden.local_path(), out, model=row.check.model, report=report)
        with open_trace(out) as candidate:
            return other_device(row.check, golden, candidate.run.engine)
    plan = plan or _plan(row, golden)
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
