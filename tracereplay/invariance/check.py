"""Runs a workload in the ways of a `plan`, and says which operators gave other bits for the same row.

base run ──tokens──▶ varied runs ──compare_runs──▶ own differences ──▶ Invariance
   └───────────────────── search: calls of chosen sizes, for the number of rows at which the first one flips
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tracereplay.comparator.judging.invariance import Compared, Own, compare_runs, counts_of
from tracereplay.comparator.numbers.tables import Ints, PassIndex
from tracereplay.engines.request import PassRequest
from tracereplay.errors import TracereplayError
from tracereplay.invariance.plan import Pass, Plan, Start, alone, plan
from tracereplay.invariance.runs import Runs
from tracereplay.invariance.search import Search
from tracereplay.launch import EngineProcess, Launchable
from tracereplay.launch.jobs import record_pass, recording_header, tokenized
from tracereplay.launch.lengths import check_lengths
from tracereplay.launch.making import engine_header, making, replay_header
from tracereplay.launch.variations import Variation
from tracereplay.passes import RECORD, RERUN
from tracereplay.recorder.options import GraphOptions
from tracereplay.storage.checkpoint import check_model
from tracereplay.trace import open_trace
from tracereplay.verdict.invariance import REPEAT, FirstDifference, Invariance, OwnDifference, Varied
from tracereplay.workload import Workload

__all__ = ["check_invariance"]

Report = Callable[[str], None]
BASE = "base"
NOT_REPEATABLE = "The engine does not repeat itself with nothing varied, so that nothing follows from what is."
CONTROL_FAILED = "The control, a run with nothing varied, could not be made."


def check_invariance(
    engine: Launchable, workload: Workload, names: Sequence[str], *, seed: int = 0, log: Path | None = None,
    keep: Path | None = None, report: Report = lambda line: None,
) -> Invariance:  # fmt: skip
    """Serves a workload in ways that must not change any bit, and compares them row by row.

    Args:
        engine: the engine to check.
        workload: what it generates.
        names: of what is varied, some of `plan.NAMES`.
        seed: of the shuffled order.
        log: file for what the engines print, one start after the other.
        keep: an empty directory for the runs' traces, ``base.trace``, ``batch-2.trace`` and so on; None for not
            keeping them.
        report: called with each line of progress.

    Returns:
        What held and what did not. What the engine refuses to vary has ``held`` None, with the reason.

    Raises:
        EngineFailed: the base run failed.
        WorkloadError, UsageError, Unsupported: see `EngineProcess`.
    """
    check_model(Path(workload.model))
    check_lengths(workload, {**engine.settings, **workload.settings})
    with tempfile.TemporaryDirectory(prefix="tracereplay-") as folder:
        return _Check(engine, workload, keep or Path(folder), log, report, kept=keep is not None).run(names, seed)


@dataclass
class _Found:
    """What is known of one thing that is varied.

    Args:
        compared: by value, in the order of the runs.
        reason: why a value could not be varied.
    """

    compared: dict[int | str, Compared] = field(default_factory=dict)
    reason: str = ""

    def own(self) -> list[Own]:
        """Each site's own difference once, with its rows under all values."""
        sites: dict[str, list[Own]] = {}
        for compared in self.compared.values():
            for own in compared.own:
                sites.setdefault(own.key.site, []).append(own)
        return [replace(each[0], counts=counts_of([own.counts for own in each])) for each in sites.values()]

    def first(self) -> tuple[int | str, Own] | None:
        """The first in a forward pass, and the value that shows it."""
        firsts = [(value, compared.own[0]) for value, compared in self.compared.items() if compared.own]
        return min(firsts, key=lambda item: item[1].place, default=None)


class _Check:
    """One check, and what it has found so far.

    Args:
        folder: where traces go.
        kept: whether they stay there.
    """

    def __init__(
        self, engine: Launchable, workload: Workload, folder: Path, log: Path | None, report: Report, *, kept: bool
    ) -> None:
        self._engine, self._workload, self._folder, self._log = engine, workload, folder, log
        self._report, self._kept = report, kept
        self._notes: dict[str, None] = {}
        self._found: dict[str, _Found] = {}
        self._narrowed: dict[str, tuple[int, int]] = {}  # by site: see `verdict.invariance.flips_between`

    def run(self, names: Sequence[str], seed: int) -> Invariance:
        """Everything, one engine start after the other."""
        with ExitStack() as traces:
            with self._started(Variation(BASE)) as process:
                runs = traces.enter_context(self._base_run(process))
                given = {**self._engine.settings, **self._workload.settings}
                planned = plan(names, self._engine, runs.base.run, given, seed)
                self._found = {name: _Found(reason=planned.idle.get(name, "")) for name in planned.values}
                self._carry_out(runs, process, {}, planned.passes)
                self._search_here(runs, process)
            for start in planned.starts if self._repeats() else ():
                self._start(runs, start)
            return self._result(runs, planned)

    # Engine starts and passes

    @contextmanager
    def _started(self, variation: Variation) -> Iterator[EngineProcess]:
        launched = variation.applied(self._engine)
        settings = {**self._workload.settings, **variation.settings}
        changed = [f"{key}={value}" for key, value in (*variation.settings.items(), *variation.env.items())]
        self._report(" ".join([f"Starting the engine {self._engine.name}", *changed]))
        model = Path(self._workload.model).resolve()
        with EngineProcess(
            launched, model=model, settings=settings, log=self._log, inherited=self._workload.inherited,
            graphs=GraphOptions("nothing"),
        ) as process:  # fmt: skip
            yield process

    @contextmanager
    def _base_run(self, process: EngineProcess) -> Iterator[Runs]:
        """Records each request alone; the trace is open in the context."""
        workload, header = recording_header(self._engine, self._workload)
        path = self._place(BASE)
        with making(path, header) as directory:
            workload = self._workload = tokenized(workload, process)
            directory.update_run(engine=engine_header(self._engine, process.info), workload=workload.as_dict())
            self._report(f"Recording the base run: {len(workload.prompts)} requests, each alone")
            serving = alone(len(workload.prompts))
            record_pass(process, directory, workload, PassRequest(path.resolve(), RECORD, serving=serving))
        with ExitStack() as traces:
            yield Runs(traces.enter_context(open_trace(path)), traces)

    def _start(self, runs: Runs, start: Start) -> None:
        try:
            with self._started(start.variation) as process:
                self._carry_out(runs, process, start.variation.settings, start.passes)
        except TracereplayError as error:  # of the start; those of a pass are kept where it is made
            self._refused(start.passes, error)

    def _carry_out(
        self, runs: Runs, process: EngineProcess, settings: Mapping[str, Any], passes: Sequence[Pass]
    ) -> None:
        """The passes of a running engine, up to one that fails: the engine may be dead then."""
        cached: Mapping[str, Ints] = {}
        for number, asked in enumerate(passes):
            self._report(_words(asked))
            try:
                with self._rerun(runs, process, settings, asked) as index:
                    if asked.what:
                        cached = self._compare(runs, asked, index, cached)
            except TracereplayError as error:
                self._refused(passes[number:], error)
                return
            if asked.what == REPEAT and not self._repeats():
                return

    @contextmanager
    def _rerun(
        self, runs: Runs, process: EngineProcess, settings: Mapping[str, Any], asked: Pass
    ) -> Iterator[PassIndex]:
        """Makes a pass with the base run's tokens forced; its trace goes, unless others are compared with it."""
        path = self._place(asked.what or "reference", asked.value)
        workload = replace(self._workload, settings={**self._workload.settings, **settings})
        with making(path, replay_header(self._engine, workload, runs.base.digest())) as directory:
            directory.update_run(engine=engine_header(self._engine, process.info))
            golden = runs.base.local_path().resolve()
            request = PassRequest(path.resolve(), RERUN, golden, serving=asked.serving)
            record_pass(process, directory, workload, request)
        if asked.kept_as:
            yield runs.refer(asked.kept_as, open_trace(path))
            return
        with open_trace(path) as trace:
            yield runs.index(trace)
        if not self._kept:
            shutil.rmtree(path, ignore_errors=True)

    def _refused(self, passes: Sequence[Pass], error: TracereplayError) -> None:
        self._report(f"Not varied: {error.brief}")
        for what in {asked.what for asked in passes} - {""}:
            self._found[what].reason = self._found[what].reason or error.brief

    def _compare(
        self, runs: Runs, asked: Pass, index: PassIndex, cached: Mapping[str, Ints]
    ) -> Mapping[str, Ints]:
        """Keeps what differs; returns which rows' inputs do, whose keys and values a cache may hold."""
        reference, found = runs.references[asked.against], self._found[asked.what]
        compared = compare_runs(reference, index, runs.rows, runs.exclusions, cached)
        found.compared[asked.value] = compared
        idle = asked.idle(reference, index)
        found.reason = found.reason or idle or _not_compared(compared)
        return compared.wrong if asked.serving.cleared == "pass" else {}

    def _place(self, what: str, value: object = "") -> Path:
        """Where a run's trace goes."""
        words = "".join(c if c.isalnum() else " " for c in str(value)).split()
        return self._folder / f"{'-'.join([what, *words])}.trace"

    # What it all says

    def _repeats(self) -> bool:
        repeat = self._found[REPEAT]
        return bool(repeat.compared) and not any(c.differing for c in repeat.compared.values())

    def _result(self, runs: Runs, planned: Plan) -> Invariance:
        if not self._repeats():
            for name, found in self._found.items():
                if name != REPEAT:
                    found.reason = NOT_REPEATABLE if self._found[REPEAT].compared else CONTROL_FAILED
        varied = tuple(self._varied(name, values) for name, values in planned.values.items())
        operators = [
            (own.place, OwnDifference(own.key.site, own.operator, own.kind, name, own.rows.differing, own.rows.of))
            for name, found in self._found.items()
            for own in found.own()
        ]
        base = runs.base.run
        return Invariance(
            varied, self._first_of_all(runs),
            tuple(operator for _, operator in sorted(operators, key=lambda item: item[0])),
            base.engine, len(base.prompts), sum(map(len, runs.rows.tokens.values())), (*base.notes, *self._notes),
        )  # fmt: skip

    def _varied(self, name: str, values: tuple[int | str, ...]) -> Varied:
        found = self._found[name]
        rows = sum(compared.rows for compared in found.compared.values())
        differs = any(compared.differing for compared in found.compared.values())
        held = False if differs else None if found.reason or not found.compared else True
        first = found.first()
        return Varied(name, values, held, found.reason, rows, None if first is None else _named(name, *first))

    def _first_of_all(self, runs: Runs) -> FirstDifference | None:
        """Of the first in a forward pass, with the number of rows at which it flips."""
        chosen = self._first_own()
        if chosen is None:
            return None
        name, value, own = chosen
        search = self._search_for(own)
        if own.kind == "operator" and search.open and own.key.site not in self._narrowed:
            try:
                with self._started(Variation(BASE)) as process:
                    self._narrow(runs, process, own, search)
            except TracereplayError as error:
                self._not_found(own, error)
        between = self._narrowed.get(own.key.site, search.between)
        named = _named(name, value, own)
        return replace(named, rows=replace(named.rows, between=between))

    def _first_own(self) -> tuple[str, int | str, Own] | None:
        """What was varied, its value, and the first own difference of all."""
        firsts = [(name, *first) for name, found in self._found.items() if (first := found.first()) is not None]
        return min(firsts, key=lambda item: item[2].place, default=None)

    # At how many rows it flips

    def _search_for(self, own: Own) -> Search:
        site = own.key.site
        every = [c.counts[site] for f in self._found.values() for c in f.compared.values() if site in c.counts]
        return Search(own.key, counts_of(every))

    def _search_here(self, runs: Runs, process: EngineProcess) -> None:
        """Searches while the first engine runs, which saves a start if the first difference is known by now."""
        chosen = self._first_own() if self._repeats() else None
        if chosen is None or chosen[2].kind == "edge":
            return
        search = self._search_for(chosen[2])
        if search.open:
            try:
                self._narrow(runs, process, chosen[2], search)
            except TracereplayError as error:
                self._not_found(chosen[2], error)

    def _narrow(self, runs: Runs, process: EngineProcess, own: Own, search: Search) -> None:
        self._report(f"Looking for the number of rows at which {own.key.site} flips")
        folder = self._folder / "search"
        try:
            search.run(self._engine, process, folder, self._workload, runs.references[""], runs.rows)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if search.between is not None:
            self._narrowed[own.key.site] = search.between

    def _not_found(self, own: Own, error: TracereplayError) -> None:
        self._notes[f"The number of rows at which {own.key.site} flips was not found: {error.brief}"] = None


def _words(asked: Pass) -> str:
    if asked.what == REPEAT:
        return "Generating again, with nothing varied"
    return f"Generating again, {asked.what + ': ' if asked.what else ''}{asked.value}"


def _not_compared(compared: Compared) -> str:
    """Which outputs could not be compared, as a sentence; empty if all were."""
    if not compared.rows:
        return "None of its rows could be compared."
    left = {key.site: why for key, why in compared.apart.items() if key.side != "in"}
    if not left:
        return ""
    site, why = next(iter(left.items()))
    return f"{len(left)} operators could not be compared, {site} the first: {why}."


def _named(what: str, value: int | str, own: Own) -> FirstDifference:
    return FirstDifference(own.key.site, own.operator, own.kind, own.key.index, what, value, own.rows)
