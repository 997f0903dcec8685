"""Runs the checks of a file: all that can be known first, then engine after engine, or several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from os import PathLike
from pathlib import Path

from tracereplay.checks.cluster import on_cluster
from tracereplay.checks.engine import KeptEngine
from tracereplay.checks.golden import opened_golden
from tracereplay.checks.groups import Group, grouped, spread
from tracereplay.checks.jobs import side_by_side
from tracereplay.checks.lock import read_lock
from tracereplay.checks.results import Result, Results
from tracereplay.checks.rows import Task, prepared, result_of
from tracereplay.checks.table import CheckFile, load_checks, selected
from tracereplay.errors import TracereplayError, UsageError
from tracereplay.storage.files import is_url
from tracereplay.store.cache import kept

__all__ = ["check"]

Report = Callable[[str], None]


def check(
    file: CheckFile | str | PathLike[str], *, only: Sequence[str] = (), keep: Path | None = None,
    log: Path | None = None, engine: KeptEngine | None = None, jobs: int = 1, ray: str | None = None,
    resources: Mapping[str, float] | None = None, report: Report = lambda line: None,
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
        log: file for what engines print; of several at once, each has its own, ``LOG.1``, ``LOG.2``.
        engine: serves the rows and stays as they leave it; by default one that is closed in the end.
        jobs: engines that run at once on this machine.
        ray: address of a cluster of Ray, over which the rows are spread.
        resources: of the cluster, what an engine takes if its row does not say it, as in ``{"gpu": 1}``.
        report: called with each line of progress.

    Raises:
        UsageError: the file is wrong, or names what is not there; nothing was started then. What goes wrong with
            a row later on is its result.
    """
    if (jobs > 1) + (ray is not None) + (engine is not None) > 1:
        raise UsageError(
            "Rows run by one engine, by several here (jobs) or by a cluster (ray); give one of these."
        )
    checks = file if isinstance(file, CheckFile) else load_checks(Path(file))
    rows = prepared(checks, selected(checks, only))
    locked = read_lock(checks.lock)
    tasks = [Task(n, row, locked.get(row.check.name), keep=keep) for n, row in enumerate(rows, 1)]
    if ray is not None:
        results = on_cluster(tasks, ray, resources or {}, report)
    else:
        with _goldens(tasks, report):
            groups = grouped(tasks, partial(opened_golden, report=report))
            if jobs > 1:
                results = side_by_side(spread(groups, jobs), jobs, log, report)
            else:
                results = _in_turn(
                    groups, KeptEngine(log, report) if engine is None else nullcontext(engine), report
                )
    return Results(checks.path, tuple(results[task.name] for task in tasks))


@contextmanager
def _goldens(tasks: Sequence[Task], report: Report) -> Iterator[None]:
    """Golden traces at URLs are on this machine meanwhile, so that each is asked for once."""
    with ExitStack() as held:
        for url in dict.fromkeys(task.row.check.golden for task in tasks if is_url(task.row.check.golden)):
            with suppress(TracereplayError):  # which the rows' results will say
                held.enter_context(kept(url, report))
        yield


def _in_turn(
    groups: Sequence[Group], engine: KeptEngine | nullcontext[KeptEngine], report: Report
) -> dict[str, Result]:
    results: dict[str, Result] = {}
    with engine as running:
        for task in (task for group in groups for task in group):
            report(f"Check {len(results) + 1} of {sum(map(len, groups))}: {task.name}")
            results[task.name] = result_of(task, running, report)
    return results
