"""Which settings cause a divergence: give the candidate golden's, and measure what remains.

    unchanged replay ─▶ differing settings ─▶ explicit ones, then all, set to golden's ─▶ ddmin

Every run is an engine start, since settings are read when an engine starts. Settings that the engine refuses,
alone or together, are skipped with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracereplay.bisector.bench import Report, begun
from tracereplay.bisector.changes import Change, Told, configured, differences
from tracereplay.bisector.effect import Criterion, Effect, effect_of, explains
from tracereplay.bisector.journal import Journal, OfSettings
from tracereplay.bisector.minimal import OutOfBudget, Smallest, minimise
from tracereplay.bisector.words import AGREES, some
from tracereplay.comparator import Policy, compare_traces
from tracereplay.comparator.tokens.generation import read_generation
from tracereplay.comparator.tokens.rollout import sampled_tokens
from tracereplay.engines.request import PassRequest
from tracereplay.errors import TracereplayError
from tracereplay.gate import applied_settings
from tracereplay.launch import Configured, EngineProcess, Launchable
from tracereplay.launch.jobs import record_pass
from tracereplay.launch.making import engine_header, making, replay_header
from tracereplay.passes import RECORD, RERUN
from tracereplay.recorder.options import GraphOptions
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.place import passing_trace, remove_trace
from tracereplay.verdict import Attribution, Verdict
from tracereplay.verdict.bisection import Bisection, Member, Skipped
from tracereplay.workload import Workload

__all__ = ["MAX_STARTS", "bisect_settings"]

MAX_STARTS = 24


def bisect_settings(
    engine: Launchable, golden: Path, folder: Path, *, like: Launchable | None = None,
    policy: Policy | None = None, settings: Mapping[str, Any] | None = None, model: Path | None = None,
    max_starts: int = MAX_STARTS, log: Path | None = None, report: Report = lambda line: None,
) -> Verdict:  # fmt: skip
    """Finds a minimal set of golden's settings that brings the candidate to parity.

    Args:
        engine: the candidate.
        golden: path of the golden trace.
        folder: where measurements are kept; an interrupted bisection resumes from it.
        like: an engine whose settings are used instead of those that golden was recorded with.
        policy: what counts as parity.
        settings: engine arguments of the candidate that override those of the golden workload.
        model: checkpoint directory, if it has moved since recording.
        max_starts: engine starts after the first, including those of an earlier attempt.
        log: file for the engine's output.
        report: called with each line of progress.

    Returns:
        The verdict of the candidate's rerun, with ``attribution`` and ``bisection`` if it diverged;
        its cause is ``setting`` if a set was found.

    Raises:
        UsageError: different weights, no logprobs, or ``folder`` belongs to another bisection.
        EngineFailed, Unsupported: the unchanged candidate does not start.
    """
    rules = policy or Policy()
    subject = OfSettings(engine.name, None if like is None else like.name)
    with begun(golden, folder, settings, model, subject) as (source, work, journal):
        bench = _Starts(engine, source, work, folder, log, report)
        candidate = bench.replay()
        report("Comparing")
        verdict = compare_traces(source, candidate, rules)
        if verdict.verdict != "diverged":
            return verdict
        with open_trace(candidate) as trace:
            wanted = Told.by_trace(source) if like is None else bench.describe(like)
            changes, skipped = differences(wanted, Told.by_trace(trace), engine, bench.arguments)
            study = _Study(bench, journal, source, trace, rules, max_starts, report)
            return study.of(verdict, changes, skipped)


class _Starts:
    """Starts the candidate once for each run."""

    def __init__(
        self, engine: Launchable, golden: Trace, workload: Workload, folder: Path, log: Path | None, report: Report
    ) -> None:
        self._engine, self._golden, self._workload = engine, golden, workload
        self._folder, self._log, self._report = folder, log, report
        self.arguments = {**engine.settings, **workload.settings}
        self._trial = folder / "trial.trace"
        self.starts = 0

    def replay(self) -> Path:
        """The candidate's unchanged rerun, unless a complete one exists."""
        path = self._folder / "candidate.trace"
        # Here, not at the first change, where an error would be taken for the engine's refusal.
        remove_trace(self._trial, self._golden.read_from)
        if path.exists():
            with open_trace(path) as trace:
                if trace.complete and RERUN in trace.passes:
                    return path
            remove_trace(path, self._golden.read_from)
        self._rerun(configured(self._engine, self.arguments, ()), path)
        return path

    @contextmanager
    def changed(self, changes: Sequence[Change]) -> Iterator[Trace]:
        """The rerun with ``changes`` made; its trace is removed afterwards."""
        with passing_trace(self._trial, self._golden.read_from) as path:
            self._rerun(configured(self._engine, self.arguments, changes), path)
            with open_trace(path) as trace:
                yield trace

    def describe(self, engine: Launchable) -> Told:
        """The settings of another engine, started with golden's arguments over its own."""
        self._report(f"Starting the engine {engine.name}, to learn its settings")
        settings = {**engine.settings, **applied_settings(self._golden)}
        with self._process(Configured(engine.name, engine.python, engine.env, settings, engine.family)) as process:
            return Told.by_engine(engine.settings, process.info)

    def _rerun(self, configured: Configured, path: Path) -> None:
        header = replay_header(configured, self._workload, self._golden.digest())
        with making(path, header) as directory, self._process(configured) as process:
            directory.update_run(engine=engine_header(configured, process.info))
            request = PassRequest(path.resolve(), RERUN, self._golden.local_path())
            record_pass(process, directory, self._workload, request)

    def _process(self, configured: Configured) -> EngineProcess:
        self.starts += 1
        model = Path(self._workload.model).resolve()
        inherited = self._workload.inherited
        return EngineProcess(
            configured,
            model=model,
            settings={},
            log=self._log,
            inherited=inherited,
            graphs=GraphOptions("nothing"),
        )


class _Study:
    """The experiments on one divergence."""

    def __init__(
        self, bench: _Starts, journal: Journal, golden: Trace, candidate: Trace, policy: Policy, most: int,
        report: Report,
    ) -> None:  # fmt: skip
        self._bench, self._journal, self._most, self._report = bench, journal, most, report
        self._generation = read_generation(golden, RECORD)
        self._sampled = sampled_tokens(golden, RECORD)
        self._before = effect_of(self._sampled, sampled_tokens(candidate, RERUN), self._generation)
        self._criterion = Criterion(policy, self._before)
        self._found: dict[tuple[str, ...], Attribution] = {}
        self._skipped: list[Skipped] = []
        self._spent = False

    def of(self, verdict: Verdict, changes: Sequence[Change], skipped: Sequence[Skipped]) -> Verdict:
        """The verdict with the results of the experiments."""
        self._skipped += skipped
        smallest: Smallest[Change] | None = None
        left: float | None = None
        try:
            for some in _stages(changes):
                kept = self._accepted(some)
                effect = self._measured(kept) if kept else None
                left = None if effect is None else 1 - explains(self._before, effect)[0]
                if effect is not None and self._criterion.restores(effect):
                    smallest = minimise(kept, self._restores)
                    break
        except OutOfBudget:
            self._spent = True
            self._report(f"All {self._most} engine starts are used up")
        return self._judged(verdict, smallest, left, changes)

    def _accepted(self, changes: Sequence[Change]) -> list[Change]:
        """The changes that the engine accepts together; the others are skipped with its reason."""
        kept = list(changes)
        while kept:
            refusal = self._refusal(kept)
            if refusal is None:
                return kept
            named = [change for change in kept if repr(change.name) in refusal]
            refused = named or [c for c in kept if len(kept) > 1 and self._refusal([c]) is not None]
            if not refused:
                self._skip(" and ".join(c.name for c in kept), refusal)
                return []
            for change in refused:
                self._skip(change.name, refusal if named else self._refusal([change]) or refusal)
            kept = [change for change in kept if change not in refused]
        return kept

    def _skip(self, name: str, reason: str) -> None:
        self._skipped.append(Skipped(name, reason))

    def _refusal(self, changes: Sequence[Change]) -> str | None:
        found = self._try(changes)
        return found if isinstance(found, str) else None

    def _measured(self, changes: Sequence[Change]) -> Effect | None:
        found = self._try(changes)
        return None if isinstance(found, str) else found

    def _restores(self, changes: Sequence[Change]) -> bool:
        effect = self._measured(changes)
        return effect is not None and self._criterion.restores(effect)

    def _try(self, changes: Sequence[Change]) -> Effect | str:
        """A run with ``changes`` made, or why the engine refuses them.

        Raises:
            OutOfBudget: no engine start is left.
        """
        names = [change.name for change in changes]
        found = self._journal.find(names)
        if found is None:
            if len(self._journal) >= self._most:
                raise OutOfBudget
            self._report(f"Start {len(self._journal) + 1} of at most {self._most}: golden's {', '.join(names)}")
            found = self._run(changes)
            self._journal.keep(names, found)
        if isinstance(found, Effect):
            self._attribute(names, found)
        return found

    def _run(self, changes: Sequence[Change]) -> Effect | str:
        try:
            with self._bench.changed(changes) as trace:
                return effect_of(self._sampled, sampled_tokens(trace, RERUN), self._generation)
        except TracereplayError as error:
            return error.brief

    def _attribute(self, names: Sequence[str], effect: Effect) -> None:
        share, interval = explains(self._before, effect)
        restores = self._criterion.restores(effect)
        measure = "logprob_sq_diff.mean"
        self._found[tuple(names)] = Attribution(
            tuple(names), share, interval, measure, "settings", restores, effect.wrong, effect.largest
        )

    def _judged(
        self, verdict: Verdict, smallest: Smallest[Change] | None, left: float | None, changes: Sequence[Change]
    ) -> Verdict:
        members = None if smallest is None else tuple(Member(c.name, value=c.shown) for c in smallest.members)
        bisection = Bisection(
            kind="settings",
            passes=len(self._journal),
            engine_starts=self._bench.starts,
            positions=len(self._before.values),
            criterion=self._criterion.words,
            minimal=members,
            proven=smallest is not None and smallest.proven,
            unexplained=left if changes else 1.0,
            arguments=() if smallest is None else tuple(c.argument for c in smallest.members),
            skipped=tuple(self._skipped),
        )
        return replace(
            verdict,
            cause="setting" if smallest is not None else verdict.cause,
            attribution=tuple(self._found.values()),
            bisection=bisection,
            reasons=(self._why(bisection, changes), *verdict.reasons),
        )

    def _why(self, found: Bisection, changes: Sequence[Change]) -> str:
        if found.minimal is not None:
            what = "; ".join(f"{m.name} = {m.value!r}" for m in found.minimal)
            rest = "" if found.proven else f" The {self._most} starts ran out before each was shown to be needed."
            return f"With golden's {what} the candidate {AGREES}.{rest}"
        if not changes:
            return "The two do not differ in any setting that could be changed."
        if self._spent:
            return self._tried(changes)
        if found.unexplained is None:
            return "No set of golden's settings was found: the engine refuses them together."
        return (
            f"No set of golden's settings brings the difference within what is allowed: {len(changes)} differ, "
            "and all that the engine takes together were set."
        )

    def _tried(self, changes: Sequence[Change]) -> str:
        """What was done before no engine start was left."""
        begun = f"All {self._most} engine starts were spent before a set of golden's settings was found"
        if not self._found:
            return f"{begun}: {len(changes)} differ, and the engine accepted none of those that were tried."
        most = max(self._found, key=len)
        never = [c.name for c in changes if not any(c.name in names for names in self._found)]
        rest = f"; never set: {some(never)}" if never else ""
        return (
            f"{begun}: {len(changes)} differ. At most {len(most)} were set together, which is not "
            f"enough: {some(most)}{rest}. Give more with --max-starts."
        )


def _stages(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
    """Explicit settings first, then all: a default that differs often follows from explicit ones."""
    given = [change for change in changes if change.given]
    if given and len(given) < len(changes):
        yield given
    if changes:
        yield changes
