"""Several engines at once on this machine: ``check --jobs``.

A worker is a thread that takes one group of rows after the other; its engine is a process of its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tracereplay.checks.engine import KeptEngine
from tracereplay.checks.groups import Group
from tracereplay.checks.results import Result
from tracereplay.checks.rows import result_of

__all__ = ["log_of", "side_by_side"]

Report = Callable[[str], None]


def side_by_side(groups: Sequence[Group], jobs: int, log: Path | None, report: Report) -> dict[str, Result]:
    """Runs groups of rows with at most ``jobs`` engines at once; the results, by names of rows.

    Where an engine fails, its row is tried once more. What ends this ends the engines too.
    """
    workers = [_Worker(log_of(log, number), report) for number in range(1, min(jobs, len(groups)) + 1)]
    waiting, results, over = deque(groups), dict[str, Result](), threading.Event()

    def work(worker: _Worker) -> None:
        with worker.engine:
            while waiting and not over.is_set():
                try:
                    group = waiting.popleft()
                except IndexError:  # another was faster
                    return
                for task in group:
                    if over.is_set():
                        return
                    worker.name = task.name
                    worker.say(f"check {task.number} of {count}")
                    results[task.name] = result_of(task, worker.engine, worker.say, again=True)
                    worker.say(results[task.name].outcome)

    count = sum(map(len, groups))
    with ThreadPoolExecutor(max(1, len(workers))) as pool:
        running = [pool.submit(work, worker) for worker in workers]
        try:
            for one in running:
                one.result()
        except BaseException:
            over.set()
            for worker in workers:
                worker.engine.kill()
            raise
    return results


class _Worker:
    def __init__(self, log: Path | None, report: Report) -> None:
        self.name = ""
        self._report = report
        self.engine = KeptEngine(log, self.say)

    def say(self, line: str) -> None:
        """Several speak at once, so that each line says of which row it is."""
        self._report(f"{self.name}: {line}")


def log_of(log: Path | None, number: int) -> Path | None:
    """Where the nth worker's engines print; one file for all would mix up their lines."""
    return None if log is None else log.with_name(f"{log.name}.{number}")
