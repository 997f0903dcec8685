"""Which operators and edges cause a divergence: cancel their own errors and measure what remains.

    replay ─▶ verdict ─▶ everything cancelled: closure, and whether parity is restored at all
                      ─▶ each class alone: what it explains
                      ─▶ classes: a minimal set that restores parity        (ddmin)
                      ─▶ sites of those classes: a minimal set              (ddmin)
                      ─▶ all but that set; then the worst of its sites alone, while passes are left

One engine start serves all passes. Of a trial only tokens and logprobs are recorded; with everything cancelled,
all outputs are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracereplay.bisector.bench import Bench, Report, begun
from tracereplay.bisector.closure import check_closure, unstable_sites
from tracereplay.bisector.effect import Criterion, Effect, effect_of, explains
from tracereplay.bisector.journal import Journal, OfOperators
from tracereplay.bisector.minimal import OutOfBudget, Smallest, minimise
from tracereplay.bisector.terms import Term, by_class, cancellation_of, terms_of, worst_first
from tracereplay.bisector.words import some, why
from tracereplay.cancellation import Cancellation
from tracereplay.comparator import Policy, compare_traces
from tracereplay.comparator.numbers.align import sites_of
from tracereplay.comparator.tokens.generation import read_generation
from tracereplay.comparator.tokens.rollout import sampled_tokens
from tracereplay.launch import EngineProcess, Launchable
from tracereplay.passes import CANCELLED, INJECTED, INJECTED_AGAIN, RECORD, RERUN
from tracereplay.recorder.options import Options
from tracereplay.trace import Trace, open_trace
from tracereplay.verdict import Attribution, Closure, Verdict
from tracereplay.verdict.bisection import Bisection, Member, Skipped

__all__ = ["MAX_PASSES", "bisect_operators"]

MAX_PASSES = 64
SINGLE_SITES = 16  # sites measured one by one at the end, if passes are left
EVERYTHING = "everything"
TOKENS = Options(sites=())  # all that the effect of a trial is measured by


def bisect_operators(
    engine: Launchable, golden: Path, folder: Path, *, policy: Policy | None = None,
    settings: Mapping[str, Any] | None = None, model: Path | None = None, max_passes: int = MAX_PASSES,
    log: Path | None = None, report: Report = lambda line: None, process: EngineProcess | None = None,
) -> Verdict:  # fmt: skip
    """Replays ``golden`` under ``engine``, and proves by experiment which operators make it diverge.

    Args:
        engine: the candidate.
        golden: path of the golden trace.
        folder: where measurements are kept; an interrupted bisection resumes from it.
        policy: what counts as parity.
        settings: engine arguments that override those of the golden workload.
        model: checkpoint directory, if it has moved since recording.
        max_passes: generations after the replay, including those of an earlier attempt.
        log: file for the engine's output.
        report: called with each line of progress.
        process: the engine, if it is already running; it is left running.

    Returns:
        The replay's verdict, with ``closure``, ``attribution`` and ``bisection`` if it diverged.

    Raises:
        UsageError: different weights, no logprobs, or ``folder`` belongs to another bisection.
        EngineFailed, Unsupported: see `EngineProcess`.
    """
    rules = policy or Policy()
    with (
        begun(golden, folder, settings, model, OfOperators(engine.name)) as (source, work, journal),
        Bench(engine, source, work, folder, log, report, process) as bench,
    ):
        candidate = bench.replay()
        report("Comparing")
        verdict = compare_traces(source, candidate, rules)
        if verdict.verdict != "diverged":
            return verdict
        with open_trace(candidate) as trace:
            study = _Study(bench, journal, source, trace, rules, max_passes, report)
            return study.of(verdict)


class _Study:
    """The experiments on one divergence."""

    def __init__(
        self, bench: Bench, journal: Journal, golden: Trace, candidate: Trace, policy: Policy, max_passes: int,
        report: Report,
    ) -> None:  # fmt: skip
        self._bench, self._journal, self._report, self._max = bench, journal, report, max_passes
        self._golden, self._candidate = golden, candidate
        self._generation = read_generation(golden, RECORD)
        # Samplers' results leave the engine, so their own differences are subtracted from what was reported.
        self._samplers = {s.name for s in sites_of(candidate, INJECTED).values() if s.role == "sampler"}
        self._sampled = sampled_tokens(golden, RECORD)
        injected = sampled_tokens(candidate, INJECTED)
        self._own = {
            key: theirs.logprob - mine.logprob
            for key, mine in self._sampled.items()
            if (theirs := injected.get(key)) and mine.logprob is not None and theirs.logprob is not None
            and theirs.logprob != mine.logprob
        }  # fmt: skip
        self._before = effect_of(self._sampled, sampled_tokens(candidate, RERUN), self._generation)
        self._criterion = Criterion(policy, self._before)
        self._found: list[Attribution] = []
        self._class_passes = 0
        self._mattering: list[Term] = []  # terms of the classes that matter
        self._whole = self._before  # with everything cancelled, once measured

    def of(self, verdict: Verdict) -> Verdict:
        """The verdict with the results of the experiments."""
        terms, left = terms_of(verdict)
        closure = self._closure()
        everything = self._effect_of_everything()
        classes = by_class(terms)
        self._attribute("all", list(classes), everything)
        smallest: Smallest[Term] | None = None
        complement = None
        try:
            self._whole = self._try(terms, "all that can be named") if left else everything
            self._each_class(classes)
            self._class_passes = len(self._journal)
            if self._criterion.restores(self._whole) and terms:
                smallest = self._smallest(classes)
                complement = self._complement(terms, smallest.members)
                self._attribute_sites()
        except OutOfBudget:
            self._report(f"All {self._max} passes are used up")
        bisection = self._bisection(everything, smallest, complement, left)
        if smallest is not None:
            rest = [term for term in terms if term not in smallest.members]
            bisection = replace(bisection, largest_left=_member(rest[0]) if rest else None)
        reasons = (*verdict.reasons, *why(closure, bisection))
        return replace(
            verdict, closure=closure, attribution=tuple(self._found), bisection=bisection, reasons=reasons
        )

    # -- experiments ------------------------------------------------------------------------------------

    def _closure(self) -> Closure:
        """Runs with everything cancelled and checks closure; the result is kept beside the journal."""
        file = self._bench.candidate.parent / "closure.json"
        if self._journal.find([EVERYTHING]) is not None and file.exists():
            return Closure.from_dict(json.loads(file.read_text(encoding="utf-8")))
        self._report("Generating with every operator's own error cancelled (closure)")
        with self._bench.cancelled(Cancellation(everything=True)) as trace:
            found = check_closure(self._golden, self._candidate, (trace, CANCELLED), self._generation)
            effect = effect_of(self._sampled, sampled_tokens(trace, CANCELLED), self._generation, self._own)
        if not found.held:
            self._report("Generating with golden inputs again, to find what is not reproducible")
            with self._bench.injected_again() as trace:
                unstable = unstable_sites(self._candidate, (trace, INJECTED_AGAIN), self._generation)
            found = replace(found, unstable=unstable)
        file.write_text(json.dumps(found.as_dict()), encoding="utf-8")
        self._journal.keep([EVERYTHING], effect)
        return found

    def _effect_of_everything(self) -> Effect:
        found = self._journal.find([EVERYTHING])
        assert isinstance(found, Effect)
        return found

    def _try(self, terms: Sequence[Term], what: str) -> Effect:
        """A run with ``terms`` cancelled, or the result of an earlier one.

        Raises:
            OutOfBudget: no pass is left.
        """
        names = [term.name for term in terms]
        known = self._journal.find(names)
        if isinstance(known, Effect):
            return known
        if len(self._journal) >= self._max:
            raise OutOfBudget
        with self._bench.cancelled(cancellation_of(terms), TOKENS) as trace:
            own = self._own if any(t.site in self._samplers and t.input is None for t in terms) else None
            effect = effect_of(self._sampled, sampled_tokens(trace, CANCELLED), self._generation, own)
        self._journal.keep(names, effect)
        share, _ = explains(self._before, effect)
        at = " (parity)" if self._criterion.restores(effect) else ""
        found = "no logprob differs" if math.isnan(share) else f"explains {share:.1%}"
        self._report(f"Pass {len(self._journal)} of at most {self._max}: {what} cancelled: {found}{at}")
        return effect

    def _each_class(self, classes: Mapping[str, Sequence[Term]]) -> None:
        for name, terms in classes.items():
            self._attribute("class", [name], self._whole if len(classes) == 1 else self._try(terms, name))

    def _smallest(self, classes: Mapping[str, Sequence[Term]]) -> Smallest[Term]:
        """A minimal set of classes, then of their sites."""
        kinds = self._smallest_classes(classes)
        self._class_passes = len(self._journal)
        self._mattering = worst_first(_terms(classes, kinds))
        if 1 < len(kinds) < len(classes):
            self._attribute("classes", kinds, self._try(self._mattering, some(kinds)))
        smallest = minimise(self._mattering, lambda part: self._restores(part, some([t.name for t in part])))
        names = [term.name for term in smallest.members]
        self._attribute("minimal", names, self._known(smallest.members, classes))
        return smallest

    def _smallest_classes(self, classes: Mapping[str, Sequence[Term]]) -> Sequence[str]:
        """Of the classes that restore parity by themselves the best, or else a minimal set of classes."""
        single = sorted((a for a in self._found if a.role == "class"), key=lambda a: a.explains, reverse=True)
        if best := next((a for a in single if a.restores), None):
            return best.operators
        names = [a.operators[0] for a in single]
        return minimise(names, lambda part: self._restores(_terms(classes, part), some(part))).members

    def _known(self, members: Sequence[Term], classes: Mapping[str, Sequence[Term]]) -> Effect:
        """The effect of cancelling a set, which was already measured."""
        if len(members) == sum(map(len, classes.values())):
            return self._whole
        return self._try(members, some([t.name for t in members]))

    def _restores(self, terms: Sequence[Term], what: str) -> bool:
        return self._criterion.restores(self._try(terms, what))

    def _complement(self, terms: Sequence[Term], members: Sequence[Term]) -> bool | None:
        """Whether cancelling all but the minimal set also restores parity; None if there is nothing else."""
        rest = [term for term in terms if term not in members]
        if not rest:
            return None
        effect = self._try(rest, "all but these")
        self._attribute("complement", [term.name for term in rest], effect)
        return self._criterion.restores(effect)

    def _attribute_sites(self) -> None:
        """Measures what each site of the classes that matter explains, worst first."""
        for term in self._mattering[:SINGLE_SITES] if len(self._mattering) > 1 else ():
            self._attribute("sites", [term.name], self._try([term], term.name))

    # -- results -----------------------------------------------------------------------------------------

    def _attribute(self, role: str, names: Iterable[str], effect: Effect) -> None:
        share, interval = explains(self._before, effect)
        restores = self._criterion.restores(effect)
        left = effect.wrong, effect.largest
        self._found.append(
            Attribution(tuple(names), share, interval, "logprob_sq_diff.mean", role, restores, *left)
        )

    def _bisection(
        self, everything: Effect, smallest: Smallest[Term] | None, complement: bool | None, left: Sequence[str]
    ) -> Bisection:
        members = None
        if smallest is not None:
            members = tuple(map(_member, smallest.members))
        reason = (
            "it could not be compared on golden inputs, or its result is an integer, so it cannot be cancelled"
        )
        return Bisection(
            kind="operators",
            passes=len(self._journal),
            class_passes=self._class_passes,
            engine_starts=self._bench.starts,
            positions=len(self._before.values),
            criterion=self._criterion.words,
            minimal=members,
            proven=smallest is not None and smallest.proven,
            complement_restores=complement,
            unexplained=1 - explains(self._before, everything)[0],
            skipped=tuple(Skipped(name, reason) for name in left),
        )


def _member(term: Term) -> Member:
    return Member(term.name, term.operator, term.error_class)


def _terms(classes: Mapping[str, Sequence[Term]], names: Iterable[str]) -> list[Term]:
    return [term for name in names for term in classes[name]]
