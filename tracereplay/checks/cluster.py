"""Rows spread over a cluster of Ray: ``check --ray``.

    here                             a node
    a thread for each group  ──▶     an actor with its resources (`actor.Worker`): an engine, which replays
                             ──▶     a task on the same node: compares, and removes the candidate's trace
    results, what is kept    ◀──

Golden traces are read there, by URL or by a path that is the same on both sides. A worker that dies is replaced
once for each row; then the row failed, with the last lines of its engine.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from tracereplay.checks import actor
from tracereplay.checks.groups import Group, grouped, spread
from tracereplay.checks.results import Result
from tracereplay.checks.rows import Task, failed, judged
from tracereplay.errors import EngineFailed, UsageError
from tracereplay.launch.process import LAST_LINES
from tracereplay.trace import open_trace

__all__ = ["on_cluster"]

Report = Callable[[str], None]
_TRIES = 2  # of a row
_PATIENCE = 30.0  # seconds for a node, before it is said that one is waited for
_KNOCK = 10.0  # seconds for somebody to answer at an address
_AT = re.compile(r"(?:ray://)?\[?(?P<host>[^\[\]/]+?)\]?:(?P<port>\d{1,5})")
_HOME = "TRACEREPLAY_HOME"
_KNOWN = {"cpu": "num_cpus", "gpu": "num_gpus", "memory": "memory"}  # what Ray takes by name
_DEFAULT = {"cpu": 1.0}


def on_cluster(
    tasks: Sequence[Task], address: str, resources: Mapping[str, float], report: Report
) -> dict[str, Result]:
    """Runs rows on a cluster; the results, by names of rows.

    Args:
        tasks: the rows.
        address: of the cluster, as ``ray.init`` takes it: ``auto``, ``HOST:6379``, ``ray://HOST:10001``.
        resources: what an engine takes if its row does not say it.
        report: called with each line of progress.

    Raises:
        UsageError: there is no such cluster, or Ray is not installed here.
    """
    with _joined(address) as ray:
        cluster = _Cluster(ray, resources or _DEFAULT, report, len(tasks))
        groups = grouped(tasks, lambda check: open_trace(check.golden))
        some = spread(groups, cluster.room(groups))
        with ThreadPoolExecutor(max(1, len(some))) as pool:
            running = [pool.submit(cluster.run, group) for group in some]
            try:
                return {result.check.name: result for one in running for result in one.result()}
            except BaseException:
                cluster.end()
                ray.shutdown()  # which ends what the threads wait for
                raise


@contextmanager
def _joined(address: str) -> Iterator[Any]:
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UsageError(
            "Checks are spread over a cluster by the package `ray`; install it with "
            "`pip install 'tracereplay[ray]'`."
        ) from error
    if ray.is_initialized():  # by whoever calls this from Python
        yield ray
        return
    _refuse_nobody(address)
    # Nodes keep their caches where this process was told to: some users have a disk for them.
    env = {_HOME: os.environ[_HOME]} if os.environ.get(_HOME) else {}
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": env})
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)  # Ray has one of its own, which ends with another exit code
    except Exception as error:  # of many kinds
        raise _no_cluster(address, str(error) or type(error).__name__) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _refuse_nobody(address: str) -> None:
    """Raises UsageError where nobody listens: Ray would try for minutes."""
    found = _AT.fullmatch(address)
    if found is None:
        return
    try:
        socket.create_connection((found["host"], int(found["port"])), timeout=_KNOCK).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, why: str) -> UsageError:
    first = why.strip().splitlines()[0].rstrip(".")
    return UsageError(
        f"There is no cluster of Ray at {address} that can be joined: {first}. Start one with `ray start --head`."
    )


class _Cluster:
    """What is asked of Ray.

    Args:
        ray: the package, connected.
        resources: what an engine takes if its row does not say it.
        report: called with each line of progress.
        rows: how many there are.
    """

    def __init__(self, ray: Any, resources: Mapping[str, float], report: Report, rows: int) -> None:
        self._ray, self._resources, self._report, self._rows = ray, resources, report, rows
        self._workers: list[_Actor] = []
        self._dies = importlib.import_module("ray.exceptions").RayError
        self._slow = importlib.import_module("ray.exceptions").GetTimeoutError
        self._at = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy

    def room(self, groups: Sequence[Group]) -> int:
        """How many engines the cluster has room for at once, as it is now."""
        has = self._ray.cluster_resources()
        fits = []
        for needs in (self._needs(group) for group in groups):
            each = [has.get(_name(name), 0.0) // amount for name, amount in needs.items() if amount > 0]
            fits.append(int(min(each, default=len(groups))))
        return max(1, min(fits, default=1))

    def run(self, group: Group) -> list[Result]:
        """Runs rows one after the other; while one is compared, the next is replayed."""
        results: list[Result] = []
        comparing: tuple[Task, actor.Made, Any] | None = None
        worker: _Actor | None = None
        for task in group:
            self._report(f"{task.name}: check {task.number} of {self._rows}")
            done, worker = self._replayed(task, worker)
            if comparing is not None:
                results.append(self._compared(*comparing))
                comparing = None
            if isinstance(done, Result):
                results.append(done)
                continue
            comparing = task, done, self._compare(task, done)
        if comparing is not None:
            results.append(self._compared(*comparing))
        if worker is not None:
            with suppress(self._dies):
                self._ray.get(worker.handle.close.remote())
                self._ray.kill(worker.handle)
            self._workers.remove(worker)
        for result in results:
            self._report(f"{result.check.name}: {result.outcome}")
        return results

    def _replayed(self, task: Task, worker: _Actor | None) -> tuple[actor.Made | Result, _Actor | None]:
        """What a row's replay made, and the worker that it leaves."""
        begun, last = time.monotonic(), ""
        for left in reversed(range(_TRIES)):
            try:
                worker = worker or self._started(task)
                made: actor.Made = self._ray.get(worker.handle.replay.remote(_sent(task)))
            except self._dies as error:
                last = self._last_lines(worker, error)
                worker = None
                self._report(f"{task.name}: its worker died{'; it is tried once more' if left else ''}")
                continue
            if made.error is not None:
                code, words, lines = made.error
                return Result(task.row.check, code, made.seconds, error=words, last_lines=lines), worker
            if made.verdict is not None:
                return judged(task, made.verdict, made.seconds), worker
            return made, worker
        died = EngineFailed(f"The worker of {task.row.engine.name!r} in the cluster died {_TRIES} times.", last)
        return failed(task, died, time.monotonic() - begun), None

    def _started(self, task: Task) -> _Actor:
        needs = {_name(name): amount for name, amount in self._needs([task]).items()}
        options = {_KNOWN[name.lower()]: n for name, n in needs.items() if name.lower() in _KNOWN}
        own = {name: n for name, n in needs.items() if name.lower() not in _KNOWN}
        kind = self._ray.remote(actor.Worker)
        handle = kind.options(**{"num_cpus": 0, **options}, resources=own, max_restarts=0).remote()
        where = handle.where.remote()
        try:
            node, folder = self._ray.get(where, timeout=_PATIENCE)
        except self._slow:
            has = json.dumps({k: v for k, v in self._ray.cluster_resources().items() if ":" not in k})
            self._report(f"{task.name}: waits for a node with {json.dumps(needs)}; the cluster has {has}")
            node, folder = self._ray.get(where)
        worker = _Actor(handle, node, folder)
        self._workers.append(worker)
        return worker

    def _needs(self, group: Group) -> Mapping[str, float]:
        return group[0].row.check.resources or self._resources

    def _compare(self, task: Task, made: actor.Made) -> Any:
        """Without a processor of its own: the engine's actor has that, and does nothing much meanwhile."""
        compare = self._ray.remote(actor.compare)
        there = self._at(made.node, soft=False)
        options = compare.options(num_cpus=0, max_retries=_TRIES - 1, scheduling_strategy=there)
        return options.remote(_sent(task), made.path, task.keep is not None)

    def _compared(self, task: Task, made: actor.Made, comparing: Any) -> Result:
        begun = time.monotonic()
        try:
            found: actor.Compared = self._ray.get(comparing)
        except self._dies as error:
            died = EngineFailed("The process that compared died twice.", _end_of(str(error)))
            return failed(task, died, made.seconds + time.monotonic() - begun)
        seconds = made.seconds + found.seconds
        if found.error is not None:
            code, words, lines = found.error
            return Result(task.row.check, code, seconds, error=words, last_lines=lines)
        assert found.verdict is not None
        try:
            if (kept := task.kept(".trace")) is not None and found.trace is not None:
                kept.write_bytes(found.trace)
            return judged(task, found.verdict, seconds)
        except Exception as error:
            return failed(task, error, seconds)

    def _last_lines(self, worker: _Actor | None, error: Exception) -> str:
        """Of the engine of a worker that died, if its node lives; else what Ray says."""
        said = _end_of(str(error))
        if worker is None:
            return said
        self._workers.remove(worker)
        with suppress(self._dies):
            lines: str = self._ray.get(self._cleared(worker), timeout=_PATIENCE)
            return f"{lines}\n{said}".strip()
        return said

    def _cleared(self, worker: _Actor) -> Any:
        """The last lines of a worker that is gone, whose directory is removed."""
        there = self._at(worker.node, soft=False)
        look = self._ray.remote(actor.last_lines).options(num_cpus=0, scheduling_strategy=there)
        return look.remote(worker.folder)

    def end(self) -> None:
        """Ends the workers, whatever they do, and removes what they leave."""
        left = tuple(self._workers)
        with suppress(Exception):
            for worker in left:
                self._ray.kill(worker.handle)
            self._ray.get([self._cleared(worker) for worker in left], timeout=_KNOCK)


class _Actor:
    def __init__(self, handle: Any, node: str, folder: str) -> None:
        self.handle, self.node, self.folder = handle, node, folder


def _sent(task: Task) -> Task:
    """What a node needs: it plans for itself, since paths may mean something else there."""
    return replace(task, plan=None, keep=None)


def _name(resource: str) -> str:
    """As Ray's own list of a cluster's resources calls it."""
    return resource.upper() if resource.lower() in ("cpu", "gpu") else resource


def _end_of(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LAST_LINES:])
