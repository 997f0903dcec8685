"""Reduces two traces, and says what was dropped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from tracereplay.bisector.minimal import minimise
from tracereplay.checks.engine import KeptEngine
from tracereplay.comparator import Policy, compare_traces
from tracereplay.errors import EngineFailed, UsageError
from tracereplay.launch import Launchable
from tracereplay.reduction.guesses import guesses
from tracereplay.reduction.part import Part
from tracereplay.reduction.prompts import GoldenEngine, Shorter
from tracereplay.reduction.running import MODES, Rerun, narrowed_by_runs
from tracereplay.reduction.search import fewer_operators, fewer_requests, fewer_tokens, first_that_shows
from tracereplay.reduction.shown import shown_by
from tracereplay.reduction.tries import Budget, Make, Report, Tries, in_bytes
from tracereplay.reduction.whole import CANDIDATE, GOLDEN, Whole
from tracereplay.trace import Trace, open_trace
from tracereplay.verdict import Verdict

__all__ = ["Reduced", "reduce"]

TRIES, SECONDS = 60, 300.0


@dataclass(frozen=True)
class Reduced:
    """Two traces that were reduced.

    Args:
        golden, candidate: the new traces, finished.
        verdict: of these.
        same: whether it says what the verdict of the whole traces says: verdict, cause, and the first divergence's
            kind, site and class; where there is none, the first differing token or logprob.
        what: what was dropped, and sizes, in sentences.
    """

    golden: Path
    candidate: Path
    verdict: Verdict
    same: bool
    what: tuple[str, ...]


def reduce(
    golden: Trace | str | PathLike[str], candidate: Trace | str | PathLike[str], folder: Path, *,
    policy: Policy | None = None, engine: Launchable | None = None, model: Path | None = None,
    settings: Mapping[str, Any] | None = None, golden_engine: Launchable | None = None,
    max_size: int | None = None, progress: Report | None = None, tries: int = TRIES, seconds: float = SECONDS,
    log: Path | None = None,
) -> Reduced:  # fmt: skip
    """Reduces two traces to the smallest that show the same.

    Args:
        golden: a recording.
        candidate: a replay of it, or another recording of the same workload.
        folder: where ``golden.trace`` and ``candidate.trace`` are made.
        policy: tolerances; the defaults if None.
        engine: the candidate's engine: what is kept is then replayed by it, so that it is known to show the same
            to whoever does that, and fewer operators may do.
        model: the checkpoint, for the engine, if it has moved.
        settings: engine arguments that the candidate's replay was given.
        golden_engine: golden's, to record shorter prompts with, where there is a first divergence and ``engine``
            is given. Then the new golden trace is one of its own, and no part of the old one. Both engines run at
            the same time; where there is no room for that, prompts stay as they are.
        max_size: of the new golden trace in bytes. If the operators up to the first divergence are more, fewer are
            kept; a replay then feeds these only, and may show more.
        progress: called with a line for each try.
        tries, seconds: what may be spent, and with an engine as much again for its tries.
        log: file for what the engine prints.

    Raises:
        UsageError: there is something in the way in ``folder``, or the traces cannot be compared.
        TraceError: a trace cannot be read.
        EngineFailed: the engine does not start, or died.
    """
    mine = golden if isinstance(golden, Trace) else open_trace(golden)
    theirs = candidate if isinstance(candidate, Trace) else open_trace(candidate)
    report = progress or _nowhere
    try:
        _make_room(folder)
        theirs.offer_base(mine)
        report("Comparing the whole traces")
        search = _Search(Whole(mine, theirs, policy), folder, max_size, Budget(tries, seconds), report)
        if engine is None:
            return search.without_engine()
        if (mode := search.whole.verdict.mode) not in MODES:
            told = f"{engine.name} was not asked: its replays do not give a verdict of mode {mode}."
            return search.without_engine(told)
        with KeptEngine(log, partial(_of_starts, report)) as kept:
            run = Rerun(search.whole, engine, kept, model, settings or {})
            return search.with_engine(run, golden_engine, log)
    finally:
        for given, trace in ((golden, mine), (candidate, theirs)):
            if given is not trace:
                trace.close()


def _nowhere(line: str) -> None:
    """Nobody waits."""


def _of_starts(report: Report, line: str) -> None:
    """Tells when an engine starts, which takes long; that it generates is the same in each try."""
    if line.startswith("Starting"):
        report(line)


def _make_room(folder: Path) -> None:
    for name in (GOLDEN, CANDIDATE):
        if os.path.lexists(folder / name):
            raise UsageError(f"{folder / name} already exists; give a folder without one.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be created: {error.strerror}.") from error


@dataclass(frozen=True)
class _Search:
    """A search under way; see `reduce`."""

    whole: Whole
    folder: Path
    max_size: int | None
    budget: Budget
    report: Report

    def without_engine(self, *more: str) -> Reduced:
        with self._tries(self._write, self.budget) as found:
            self._narrow(found)
            return self._put(found, *more)

    def with_engine(self, run: Rerun, golden: Launchable | None, log: Path | None) -> Reduced:
        name = run.engine.name
        with self._tries(self._write, self.budget) as written:
            part = self._narrow(written) or self.whole.part()
            with self._tries(run.make, self.budget.renewed()) as replayed:
                if narrowed_by_runs(self.whole, part, replayed) is None:
                    told = f"No replay by {name} of a part showed the same; this was not replayed."
                    return self._put(written, told)
                reduced = self._put(replayed, f"Replayed by {name}, golden shows the same.", replayed=True)
        if golden is None or self.whole.shown.site is None:
            return reduced
        return self._shortened(reduced, run, golden, log)

    def _shortened(self, reduced: Reduced, run: Rerun, engine: Launchable, log: Path | None) -> Reduced:
        try:
            with GoldenEngine(engine, log, self.report) as golden:
                found = Shorter(run, golden, self.folder, self.budget.renewed(), self.report).search()
        except EngineFailed as error:  # both run at once, and one machine may not have room for them
            return self._judged(reduced, f"Prompts could not be shortened further: {error.brief}")
        if found is None:
            told = f"Prompts stay as they are: recorded anew by {engine.name}, golden shows something else."
            return replace(reduced, what=(*reduced.what, told))
        before, after = found
        return self._judged(
            reduced, f"Recorded anew by {engine.name}, with prompts of at most {after} of {before} tokens."
        )

    def _judged(self, reduced: Reduced, told: str) -> Reduced:
        """The traces that are there now, which may have been replaced since."""
        with open_trace(reduced.golden) as mine, open_trace(reduced.candidate) as theirs:
            verdict = compare_traces(mine, theirs, self.whole.policy)
            same = shown_by(verdict, mine, theirs) == self.whole.shown
            size = f"The golden trace takes {in_bytes(mine.size)} now."
        return replace(reduced, verdict=verdict, same=same, what=(*reduced.what, told, size))

    def _tries(self, make: Make, budget: Budget) -> Tries:
        return Tries(self.whole, self.folder, make, budget, self.report)

    def _write(self, part: Part, folder: Path) -> None:
        self.whole.write_golden(part, folder)
        self.whole.write_candidate(part, folder)

    def _narrow(self, found: Tries) -> Part | None:
        """The smallest part that was found; None: not even a copy of all of it shows the same."""
        part = first_that_shows(guesses(self.whole), found.shows)
        if part is None:
            return None
        first = self.whole.verdict.first_divergence
        if len(part.requests) > 1:
            part = fewer_requests(part, found.shows, None if first is None else first.request)
        part = fewer_tokens(self.whole, part, found.shows)
        if first is None:
            part = fewer_operators(self.whole, part, found.shows)
        if self.max_size is not None and found.size > self.max_size:
            part = self._without_feeders(part, found)
        return part

    def _without_feeders(self, part: Part, found: Tries) -> Part:
        """Without operators that only feed others."""
        units = range(len(self.whole.units)) if part.units is None else part.units
        smallest = minimise(
            sorted(units, reverse=True), lambda some: found.shows(replace(part, units=frozenset(some)))
        )
        return replace(part, units=frozenset(smallest.members))

    def _put(self, found: Tries, *more: str, replayed: bool = False) -> Reduced:
        """The traces where they belong, compared once more; ``replayed``: the candidate is a replay of golden."""
        part = found.part
        if part is None:
            part = self.whole.part()
            self._write(part, self.folder)
        else:
            found.put(self.folder)
        verdict, shown = self.whole.judge(self.folder, part)
        same = shown == self.whole.shown
        if not same:
            more = (f"It shows something else than the whole traces: {shown.words()}.", *more)
        what = (*self._what(part, replayed=replayed), *more)
        return Reduced(self.folder / GOLDEN, self.folder / CANDIDATE, verdict, same, what)

    def _what(self, part: Part, *, replayed: bool) -> Iterator[str]:
        """What was dropped, and sizes."""
        whole = self.whole
        yield f"Of {whole.words(whole.part())}, there are {whole.words(part)}."
        for name, trace in ((GOLDEN, whole.golden), (CANDIDATE, whole.candidate)):
            with open_trace(self.folder / name) as reduced:
                size = reduced.size
            side = name.removesuffix(".trace")
            yield f"The {side} trace takes {in_bytes(size)} of {in_bytes(trace.size)}."
            if name == GOLDEN and self.max_size is not None and size > self.max_size:
                asked = in_bytes(self.max_size)
                yield f"That is more than the {asked} that were asked for, and no less shows the same."
        alone = replayed or whole.verdict.mode == "isolated"  # nothing has to be fed for what is kept
        if not alone and part.units is not None and len(part.units) < max(part.units, default=-1) + 1:
            yield (
                "Operators are missing before some that are kept: in a replay they run unfed, and what they hand "
                "on may differ."
            )
        if self.budget.spent:
            yield f"The search was ended after {self.budget.used} tries; less might do."
