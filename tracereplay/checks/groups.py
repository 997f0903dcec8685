"""Which rows one start of an engine can serve, and how they are spread over several engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from tracereplay.checks.rows import Task, plan_of
from tracereplay.checks.table import Check
from tracereplay.errors import TracereplayError
from tracereplay.trace import Trace

__all__ = ["Group", "grouped", "spread"]

Group = Sequence[Task]  # rows that run one after the other, by one engine as far as it can serve them


def grouped(tasks: Sequence[Task], opened: Callable[[Check], AbstractContextManager[Trace]]) -> list[Group]:
    """Rows that one start can serve together, else in their order.

    Args:
        tasks: the rows.
        opened: opens a row's golden trace, which says what an engine is asked for.
    """
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        found = _planned(task, opened)
        start = f"alone {task.number}" if found.plan is None else found.plan.start
        needs = json.dumps(dict(task.row.check.resources), sort_keys=True)
        groups.setdefault(f"{start} {needs}", []).append(found)
    return list(groups.values())


def _planned(task: Task, opened: Callable[[Check], AbstractContextManager[Trace]]) -> Task:
    """Without a plan where there is none, whatever the reason: the row's result will say it."""
    if task.row.check.mode == "isolated":
        return task
    try:
        with opened(task.row.check) as golden:
            return replace(task, plan=plan_of(task.row, golden))
    except TracereplayError:
        return task


def spread(groups: Sequence[Group], workers: int) -> list[Group]:
    """The groups, of which the largest are halved until there is one for each worker.

    Why not more: each half starts an engine of its own.

    >>> [len(group) for group in spread([[1, 2, 3], [4]], 3)]
    [2, 1, 1]
    """
    found = list(groups)
    while len(found) < workers:
        at = max(range(len(found)), key=lambda number: len(found[number]), default=None)
        if at is None or len(found[at]) < 2:
            break
        half = (len(found[at]) + 1) // 2
        found[at : at + 1] = [found[at][:half], found[at][half:]]
    return found
