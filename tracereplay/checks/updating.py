"""Records golden traces anew, and notes in ``checks.lock`` what was accepted, and why."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path

from tracereplay.checks.golden import UPDATE
from tracereplay.checks.lock import Locked, read_lock, write_lock
from tracereplay.checks.rows import Ready, prepared
from tracereplay.checks.table import Check, CheckFile, load_checks, selected
from tracereplay.environments import Engine
from tracereplay.errors import NotATrace, UsageError
from tracereplay.gate import workload_of
from tracereplay.launch import jobs
from tracereplay.recorder.options import Options
from tracereplay.storage.files import is_url
from tracereplay.store.cache import kept
from tracereplay.store.putting import uploading
from tracereplay.trace import open_trace
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.place import Place
from tracereplay.workload import Workload, read_prompts

__all__ = ["Updated", "record_anew", "update"]

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Updated:
    """A golden trace that was recorded anew.

    Args:
        check: its row.
        before, digest: of the trace that was replaced, if there was one, and of the one that is there now.
    """

    check: Check
    before: str | None
    digest: str

    @property
    def words(self) -> str:
        """In a sentence."""
        check = self.check
        if self.before is None:
            return f"{check.name}: {check.golden} was recorded; its digest is {self.digest}."
        if self.before == self.digest:
            return f"{check.name}: {check.golden} was recorded again and is the same, {self.digest}."
        told = (
            f"{check.name}: {check.golden} was recorded anew; its digest is {self.digest}, and was {self.before}."
        )
        return told if check.digest is None else f"{told} Put it in the row, whose 'digest' is {check.digest}."


def update(
    file: CheckFile | str | PathLike[str], reason: str, *, only: Sequence[str] = (), log: Path | None = None,
    report: Report = lambda line: None,
) -> tuple[Updated, ...]:  # fmt: skip
    """Records golden traces anew, each under its row's engine and settings, and writes ``checks.lock``.

    What is generated is what the row's prompts say, or else what the golden trace asks for, through the same
    gate as for a replay.

    Args:
        file: the checks, or their TOML file.
        reason: why what the engines compute now is right.
        only: globs of names of rows; all rows, if there are none.
        log: file for what engines print.
        report: called with each line of progress.

    Raises:
        UsageError: the file is wrong, names what is not there or cannot be replaced; nothing was started then.
        TracereplayError: a recording failed. Its golden trace is as it was; those before it are replaced.
    """
    checks = file if isinstance(file, CheckFile) else load_checks(Path(file))
    if not reason.strip():
        raise UsageError(f"A golden trace is replaced for a reason; say which: {UPDATE} TEXT.")
    rows = prepared(checks, selected(checks, only), made=True)
    _refuse(checks, rows)
    locked = read_lock(checks.lock)
    done = []
    for number, row in enumerate(rows, 1):
        report(f"Golden trace {number} of {len(rows)}: {row.check.name}")
        found = _update(row, log, report)
        locked[row.check.name] = _locked(checks, row.check, reason.strip())
        write_lock(checks.lock, locked)  # after each: what is replaced is noted, whatever becomes of the rest
        done.append(found)
    return tuple(done)


def _refuse(file: CheckFile, rows: Sequence[Ready]) -> None:
    made: dict[str, Check] = {}
    for check in (row.check for row in rows):
        place = check.golden if is_url(check.golden) else os.path.realpath(check.golden)
        other = made.setdefault(place, check)
        if other is not check:
            raise UsageError(
                f"The rows {other.name!r} and {check.name!r} of {file.path} share {check.golden}; say with --only "
                "whose engine is to record it."
            )


def _update(row: Ready, log: Path | None, report: Report) -> Updated:
    where, before = row.check.golden, None
    if _is_there(where):
        with open_trace(where) as golden:
            before = golden.digest()
    record_anew(row.engine, row.check, log=log, report=report)
    with open_trace(where) as golden:
        return Updated(row.check, before, golden.digest())


@dataclass(frozen=True, slots=True)
class _Recording:
    """What is recorded, how much of it, and whether as one file."""

    workload: Workload
    options: Options
    packed: bool


def _is_there(golden: str) -> bool:
    if not is_url(golden):
        return os.path.lexists(golden)
    try:
        open_trace(golden).close()
    except NotATrace:
        return False
    return True


def record_anew(
    engine: Engine, check: Check, *, log: Path | None = None, report: Report = lambda line: None
) -> None:
    """Records what a row's prompts, or its golden trace, ask for under ``engine``, in the trace's place.

    A trace stays what it was, one file or a directory; a new one is a directory if it is called ``.trace``, and
    one file at a URL, where it is put when it is complete.

    Raises:
        TracereplayError: nothing was recorded; the trace is as it was.
    """
    if not is_url(check.golden):
        _record_at(engine, Path(check.golden), check, log, report)
        return
    with uploading(check.golden, force=True) as path:
        if _is_there(check.golden):
            with kept(check.golden, report) as before:
                shutil.copyfile(before, path)
        _record_at(engine, path, check, log, report)


def _record_at(engine: Engine, path: Path, check: Check, log: Path | None, report: Report) -> None:
    asked = _recording(engine, path, check)
    record = partial(jobs.record, engine, asked.workload, options=asked.options, log=log, report=report)
    if not asked.packed:
        place = Place(path, force=True)
        try:
            record(place.path)
        except BaseException:
            shutil.rmtree(place.path, ignore_errors=True)  # beside the trace that stays, if there is one
            raise
        place.put()
        return
    with (
        tempfile.TemporaryDirectory(prefix="tracereplay-") as folder,
        open_trace(record(Path(folder) / "golden.trace")) as trace,
    ):
        pack_trace(trace, path, force=True)


def _recording(engine: Engine, path: Path, check: Check) -> _Recording:
    options, packed, found = Options(), path.suffix != ".trace", None
    if os.path.lexists(path):
        with open_trace(path) as golden:
            golden.require_recording()
            if golden.sealed:
                raise UsageError(f"{path} is sealed; record a new one with `tracereplay record --encrypt-to`.")
            run, packed = golden.run, golden.packed
            options = Options(level=run.level, sites=run.sites, sides=run.sides)
            if check.prompts is None:
                found = workload_of(golden, check.settings, check.model, other_weights=True)
    if found is not None:
        return _Recording(Workload(found.model, found.prompts, found.settings), options, packed)
    return _Recording(_prompted(engine, check), options, packed)


def _prompted(engine: Engine, check: Check) -> Workload:
    """What a row's prompts ask for."""
    model = check.model or engine.model
    if check.prompts is None or model is None:
        raise UsageError(
            f"The row {check.name!r} needs 'prompts' and 'model' to record {check.golden}; give both."
        )
    sampling = {"max_tokens": check.max_tokens, "temperature": 0.0, "logprobs": 0}
    return Workload(str(model), read_prompts(check.prompts, sampling, {}), check.settings)


def _locked(file: CheckFile, check: Check, reason: str) -> Locked:
    with open_trace(check.golden) as golden:
        run = golden.run
        versions = {name: str(value) for name, value in run.engine_facts("versions").items() if value}
        return Locked(
            golden=_named(check.golden, file),
            digest=golden.digest(),
            reason=reason,
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            weights=run.weights or "",
            device=str(run.engine.get("device") or ""),
            format=golden.format,
            settings=check.settings,
            versions={**versions, "tracereplay": version("tracereplay")},
        )


def _named(golden: str, file: CheckFile) -> str:
    """From the file's directory, so that it is the same wherever that lies."""
    return golden if is_url(golden) else os.path.relpath(golden, file.path.absolute().parent)
