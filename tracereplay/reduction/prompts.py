"""Shorter prompts, where golden's engine is there too: each try records golden anew, and replays that.

Other prompts are another generation, so that nothing of golden's is left but what was asked for; what must stay is
the verdict and its first divergence. Without a first divergence nothing would be the same: other tokens part.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from tracereplay.bisector.minimal import OutOfBudget
from tracereplay.checks.engine import planned
from tracereplay.comparator import compare_traces
from tracereplay.engines.request import PassRequest
from tracereplay.gate import workload_of
from tracereplay.launch import EngineProcess, Launchable
from tracereplay.launch.jobs import record_pass, recording_header
from tracereplay.launch.making import engine_header, making
from tracereplay.passes import RECORD
from tracereplay.recorder.options import GraphOptions, Options
from tracereplay.reduction.running import Rerun
from tracereplay.reduction.shown import shown_by
from tracereplay.reduction.tries import Budget, Report
from tracereplay.reduction.whole import CANDIDATE, GOLDEN
from tracereplay.trace import open_trace
from tracereplay.workload import Prompt, Workload

__all__ = ["GoldenEngine", "Shorter"]


class GoldenEngine:
    """Golden's engine, started for the first recording and ended with the context.

    Args:
        engine: how it is started.
        log: file for what it prints.
        report: called with each line of progress.
    """

    def __init__(self, engine: Launchable, log: Path | None, report: Report) -> None:
        self.engine, self._log, self._report = engine, log, report
        self._process: EngineProcess | None = None

    def __enter__(self) -> GoldenEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.close()

    def record(self, workload: Workload, out: Path, options: Options) -> None:
        """Records a workload of the same model and settings as before.

        Raises:
            TracereplayError: see `launch.jobs.record`.
        """
        model = Path(workload.model)
        workload, header = recording_header(self.engine, workload, options.level)
        if self._process is None:
            self._report(f"Starting golden's engine {self.engine.name}")
            graphs = GraphOptions("nothing", options.sites, options.sides, options.level)
            self._process = EngineProcess(
                self.engine, model=model.resolve(), settings=workload.settings, log=self._log, graphs=graphs
            )
        with making(out, {**header, **options.header()}) as directory:
            directory.update_run(engine=engine_header(self.engine, self._process.info))
            request = PassRequest(directory.path.resolve(), RECORD, options=options)
            record_pass(self._process, directory, workload, request)


@dataclass
class Shorter:
    """A search for shorter prompts.

    Args:
        run: how the candidate replays.
        golden: golden's engine.
        folder: with both reduced traces, which are replaced by those with shorter prompts.
        budget: of tries.
        report: called with a line for each.
    """

    run: Rerun
    golden: GoldenEngine
    folder: Path
    budget: Budget
    report: Report
    _found: dict[tuple[tuple[int, ...], ...], bool] = field(default_factory=dict)

    def search(self) -> tuple[int, int] | None:
        """The longest prompt's tokens before and after; None: golden's engine does not show the same at all.

        Each prompt first loses its beginning, by halves, and then its end.
        """
        with open_trace(self.folder / GOLDEN) as golden:
            workload = workload_of(golden, {}, self.run.model)
            options = Options(level=golden.run.level, sites=golden.run.sites, sides=golden.run.sides)
        prompts = [prompt.token_ids or () for prompt in workload.prompts]
        before = longest = max(map(len, prompts), default=0)
        shows = self._asked(workload, options)
        try:
            if not shows(prompts):
                return None
            for cut in (_endings, _beginnings):
                least = 1
                while least < longest:
                    middle = (least + longest) // 2
                    if shows(cut(prompts, middle)):
                        prompts, longest = cut(prompts, middle), middle
                    else:
                        least = middle + 1
        except OutOfBudget:
            pass
        return before, longest

    def _asked(self, workload: Workload, options: Options) -> Callable[[list[tuple[int, ...]]], bool]:
        def shows(prompts: list[tuple[int, ...]]) -> bool:
            key = tuple(prompts)
            if key not in self._found:
                self.budget.take()
                asked = [_with_ids(prompt, ids) for prompt, ids in zip(workload.prompts, prompts, strict=True)]
                self._found[key] = self._try(replace(workload, prompts=tuple(asked)), options)
            return self._found[key]

        return shows

    def _try(self, workload: Workload, options: Options) -> bool:
        tried = self.folder / ".shorter"
        tried.mkdir()
        try:
            self.golden.record(workload, tried / GOLDEN, options)
            with open_trace(tried / GOLDEN) as golden:
                run = self.run
                plan = planned(run.engine, golden, run.settings, run.model, injected=True)
                run.kept.replay(plan, golden, tried / CANDIDATE)
                with open_trace(tried / CANDIDATE) as candidate:
                    verdict = compare_traces(golden, candidate, run.whole.policy)
                    shown = shown_by(verdict, golden, candidate)
            same = shown == run.whole.shown
            longest = max(len(prompt.token_ids or ()) for prompt in workload.prompts)
            found = "shows the same" if same else f"shows something else ({shown.words()})"
            self.report(f"Try {self.budget.used}: prompts of at most {longest} tokens: {found}")
            if same:
                for name in (GOLDEN, CANDIDATE):
                    shutil.rmtree(self.folder / name)
                    (tried / name).rename(self.folder / name)
            return same
        finally:
            shutil.rmtree(tried, ignore_errors=True)


def _with_ids(prompt: Prompt, ids: tuple[int, ...]) -> Prompt:
    """The same request with other tokens; its text would no longer be that of these."""
    return prompt if prompt.token_ids == ids else replace(prompt, token_ids=ids, text=None)


def _endings(prompts: Sequence[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    return [ids[-most:] for ids in prompts]


def _beginnings(prompts: Sequence[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    return [ids[:most] for ids in prompts]
