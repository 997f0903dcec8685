"""An engine that is kept running from one replay to the next, as long as they want the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracereplay.errors import EngineFailed, TracereplayError
from tracereplay.gate import workload_of
from tracereplay.launch import EngineProcess, Launchable
from tracereplay.launch.jobs import replay_into, replayed_level
from tracereplay.launch.lengths import check_lengths
from tracereplay.launch.making import making, replay_header
from tracereplay.recorder.options import GraphOptions
from tracereplay.trace import Trace
from tracereplay.workload import Workload

__all__ = ["KeptEngine", "Plan", "planned"]

Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """A replay that may be carried out: which engine, started how, generates what.

    Args:
        engine: the candidate.
        workload: what the gate lets golden ask for.
        level: at which the injected pass is recorded.
        injected: whether there is one.
    """

    engine: Launchable
    workload: Workload
    level: str
    injected: bool

    @property
    def start(self) -> str:
        """The same for replays that one engine start can serve."""
        work, engine = self.workload, self.engine
        parts = {
            "engine": [engine.name, str(engine.python), dict(engine.env), dict(engine.settings), engine.family],
            "model": str(Path(work.model).resolve()),
            "settings": dict(work.settings),
            "inherited": sorted(work.inherited),
            "level": self.level,
        }
        return json.dumps(parts, sort_keys=True, default=str)


def planned(
    engine: Launchable, golden: Trace, settings: Mapping[str, Any], model: Path | None, *, injected: bool,
    other_weights: bool = False,
) -> Plan:  # fmt: skip
    """What replaying golden takes; nothing is started.

    Raises:
        OtherWeights: the checkpoint differs from golden's.
        TracereplayError: golden asks for what it may not, or cannot be generated again.
    """
    workload = workload_of(golden, settings, model, other_weights=other_weights)
    check_lengths(workload, {**engine.settings, **workload.settings})
    return Plan(engine, workload, replayed_level(golden, injected=injected), injected)


class KeptEngine:
    """At most one engine, started when a replay asks for it and ended when another one is wanted.

    Args:
        log: file for what engines print.
        report: called with each line of progress.
    """

    def __init__(self, log: Path | None = None, report: Report = lambda line: None) -> None:
        self._log, self._report = log, report
        self._process: EngineProcess | None = None
        self._start = ""
        self._failed: dict[str, TracereplayError] = {}  # starts that would fail again
        self._times = Counter[str]()  # how often they failed
        self._pid = 0  # of the engine's process, from before it has started
        self._over = False
        self.starts = 0

    def __enter__(self) -> KeptEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the engine, if one is running."""
        process, self._process, self._pid = self._process, None, 0
        if process is not None:
            process.close()

    def forget(self) -> None:
        """A start that failed once may be tried again."""
        self._failed = {start: error for start, error in self._failed.items() if self._times[start] > 1}

    def kill(self) -> None:
        """Ends the engine at once, from another thread than the one that waits for it; no other is started."""
        self._over = True
        if pid := self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def started(self, plan: Plan) -> Mapping[str, Any]:
        """What the engine that a replay needs says of itself; it is running then.

        Raises:
            TracereplayError: it does not start; it is not tried again.
        """
        return self._running(plan).info

    def replay(self, plan: Plan, golden: Trace, out: Path) -> None:
        """Replays golden into a new trace at ``out``.

        Raises:
            TracereplayError: see `launch.jobs.replay`. The engine is not used again then.
        """
        process = self._running(plan)
        header = replay_header(plan.engine, plan.workload, golden.digest(), golden.run.level)
        try:
            with making(out, header) as directory:
                replay_into(
                    process, directory, plan.engine, golden, plan.workload, injected=plan.injected,
                    report=self._report,
                )  # fmt: skip
        except BaseException:
            self.close()
            raise

    def _running(self, plan: Plan) -> EngineProcess:
        if self._over:
            raise EngineFailed(f"The engine {plan.engine.name!r} was not started: the checks were ended.")
        if plan.start in self._failed:
            raise self._failed[plan.start]
        if self._process is not None and self._start == plan.start:
            return self._process
        self.close()
        self._report(f"Starting the engine {plan.engine.name}")
        try:
            self._process = EngineProcess(
                plan.engine, model=Path(plan.workload.model).resolve(), settings=plan.workload.settings,
                log=self._log, inherited=plan.workload.inherited, graphs=GraphOptions("golden", level=plan.level),
                spawned=self._spawned,
            )  # fmt: skip
        except TracereplayError as error:
            self._failed[plan.start] = error
            self._times[plan.start] += 1
            self._pid = 0
            raise
        self._start = plan.start
        self.starts += 1
        return self._process

    def _spawned(self, pid: int) -> None:
        self._pid = pid
        if self._over:
            self.kill()
