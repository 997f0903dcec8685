"""Which version of an engine was the first to diverge.

    good ── ? ── ? ── ? ── ? ── bad        judge the middle, halve; skip what cannot be judged
                  │
                  └▶ build its environment, replay golden, look at the verdict

As in ``git bisect``, a version that cannot be built or does not start is skipped: its neighbours are tried
instead, and where skipped ones lie between the last good and the first bad, each of them may be the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracereplay.bisector.bench import Report, begun, golden_workload
from tracereplay.bisector.journal import Journal, OfVersions
from tracereplay.comparator import Policy, compare_traces
from tracereplay.engines.known import PACKAGE
from tracereplay.environments import create_engine
from tracereplay.environments.releases import check_order, read_version, releases_between
from tracereplay.errors import TracereplayError, UsageError
from tracereplay.launch import Launchable, jobs
from tracereplay.trace import open_trace
from tracereplay.trace.place import remove_trace
from tracereplay.verdict import Verdict
from tracereplay.verdict.bisection import Bisection, Skipped, Tried

__all__ = ["Found", "bisect_versions", "first_bad"]

GOOD, BAD, SKIPPED = "good", "bad", "skipped"
Build = Callable[[str, Report], Launchable]  # makes the engine of a version


class Found:
    """What a search found: indices of the last good and the first bad version, and those tried between."""

    def __init__(self, good: int, bad: int) -> None:
        self.good, self.bad = good, bad
        self.skipped: list[int] = []


def first_bad(count: int, judge: Callable[[int], str]) -> Found:
    """Narrows versions 0 (good) to ``count - 1`` (bad) down to two neighbours but for skipped ones.

    Args:
        count: how many versions there are; the ends are known.
        judge: ``good``, ``bad`` or ``skipped``.
    """
    found = Found(0, count - 1)
    skipped: set[int] = set()
    while open_ := [i for i in range(found.good + 1, found.bad) if i not in skipped]:
        middle = (found.good + found.bad) / 2
        here = min(open_, key=lambda i: abs(i - middle))
        outcome = judge(here)
        if outcome == GOOD:
            found.good = here
        elif outcome == BAD:
            found.bad = here
        else:
            skipped.add(here)
    found.skipped = sorted(i for i in skipped if found.good < i < found.bad)
    return found


def bisect_versions(
    golden: Path, folder: Path, *, good: str, bad: str, package: str = PACKAGE,
    versions: Sequence[str] | None = None, build: Build | None = None, policy: Policy | None = None,
    settings: Mapping[str, Any] | None = None, model: Path | None = None, log: Path | None = None,
    report: Report = lambda line: None,
) -> Verdict:  # fmt: skip
    """Finds the first version under which golden's replay diverges.

    Args:
        golden: path of the golden trace.
        folder: where verdicts are kept; an interrupted bisection resumes from them.
        good, bad: versions; each is judged first.
        package: the distribution to install.
        versions: those to try, ends included; by default all releases between, as uv finds them.
        build: makes the engine of a version; by default an environment with ``package==version``.
        policy: what is tolerated.
        settings: engine arguments that override those of the golden workload.
        model: checkpoint directory, if it has moved since recording.
        log: file for the engines' output.
        report: called with each line of progress.

    Returns:
        The verdict of the first bad version against a recording of the last good one. If ``bad`` does not
        diverge: its own verdict, without a bisection.

    Raises:
        UsageError: the ends are in the wrong order, ``good`` already diverges, or the weights differ.
        EnvironmentFailed, EngineFailed: an end cannot be judged.
    """
    check_order(good, bad)
    names = _between(package, good, bad, versions)
    with begun(golden, folder, settings, model, OfVersions(package)) as (_, _, journal):
        each = _Each(settings or {}, model, log, report)
        judge = _Judge(golden, folder, journal, build or _builder(package), policy or Policy(), each)
    newest = judge.verdict(bad)
    if judge.outcome(bad) != BAD:
        return newest
    if judge.outcome(good, strictly=True) == BAD:
        raise UsageError(f"{package} {good} already diverges from {golden}; give an older --good.")
    found = first_bad(len(names), lambda i: judge.outcome(names[i]))
    return judge.final(names, found, package)


def _between(package: str, good: str, bad: str, versions: Sequence[str] | None) -> list[str]:
    if versions is None:
        found = releases_between(package, good, bad)
    else:
        found = sorted({*versions, good, bad}, key=read_version)
        outside = [v for v in found if not read_version(good) <= read_version(v) <= read_version(bad)]
        if outside:
            raise UsageError(f"--versions names {outside[0]}, which is not between {good} and {bad}.")
    if good not in found or bad not in found:
        missing = good if good not in found else bad
        raise UsageError(f"There is no release {missing} of {package}; there are {', '.join(found) or 'none'}.")
    return found


def _builder(package: str) -> Build:
    def build(version: str, report: Report) -> Launchable:
        return create_engine(f"{package}-{version}", [f"{package}=={version}"], report=report).engine

    return build


@dataclass(frozen=True, slots=True)
class _Each:
    """What every version's run has in common; see `bisect_versions`."""

    settings: Mapping[str, Any]
    model: Path | None
    log: Path | None
    report: Report

    def replay(self, engine: Launchable, golden: Path, out: Path) -> None:
        jobs.replay(
            engine, golden, out, settings=self.settings, model=self.model, log=self.log, report=self.report
        )


class _Judge:
    """Judges versions, each once."""

    def __init__(
        self, golden: Path, folder: Path, journal: Journal, build: Build, policy: Policy, each: _Each
    ) -> None:
        self._golden, self._folder, self._journal = golden, folder, journal
        self._build, self._policy, self._each = build, policy, each
        self._report = each.report
        self._tried: list[Tried] = []
        self._starts = 0

    def outcome(self, version: str, *, strictly: bool = False) -> str:
        """Whether the version is good or bad, or why it is skipped.

        Args:
            strictly: raise instead of skipping, since an end must be judged.
        """
        known = next((tried for tried in self._tried if tried.version == version), None)
        if known is not None:
            return known.outcome
        found = self._journal.find([version])
        if isinstance(found, str):
            outcome, _, why = found.partition(": ")
        else:
            outcome, why = self._judged(version, strictly)
        return self._note(version, outcome, why)

    def verdict(self, version: str) -> Verdict:
        """The verdict of an end's replay, which is run even if its outcome is known."""
        verdict = self._replay(self._golden, version)
        self._note(version, *_seen(verdict))
        return verdict

    def final(self, names: Sequence[str], found: Found, package: str) -> Verdict:
        """The first bad version against the last good one."""
        good, bad = names[found.good], names[found.bad]
        self._report(f"Recording {good}, to compare {bad} with it")
        recorded = self._folder / "last-good.trace"
        with open_trace(self._golden) as source:
            work = golden_workload(source, self._each.settings, self._each.model)
        self._starts += 1
        engine = self._build(good, self._report)
        remove_trace(recorded, [self._golden])
        jobs.record(engine, work, recorded, log=self._each.log, report=self._report)
        verdict = self._replay(recorded, bad)
        between = [names[i] for i in found.skipped]
        bisection = Bisection(
            kind="versions",
            engine_starts=self._starts,
            criterion="the replay's verdict is not diverged",
            proven=not between,
            skipped=tuple(Skipped(v, "it is between the last good and the first bad version") for v in between),
            tried=tuple(self._tried),
            first_bad=bad,
            last_good=good,
        )
        return replace(verdict, bisection=bisection, reasons=(_why(bisection, package, between), *verdict.reasons))

    def _note(self, version: str, outcome: str, why: str) -> str:
        self._tried.append(Tried(version, outcome, why))
        if self._journal.find([version]) is None:
            self._journal.keep([version], f"{outcome}: {why}")
        self._report(f"{version} is {outcome}: {why}")
        return outcome

    def _judged(self, version: str, strictly: bool) -> tuple[str, str]:
        try:
            return _seen(self._replay(self._golden, version))
        except TracereplayError as error:
            if strictly:
                raise
            return SKIPPED, str(error).splitlines()[0]

    def _replay(self, golden: Path, version: str) -> Verdict:
        self._report(f"Trying {version}")
        engine = self._build(version, self._report)
        self._starts += 1
        out = self._folder / "candidate.trace"
        remove_trace(out, [self._golden, golden])
        self._each.replay(engine, golden, out)
        return compare_traces(golden, out, self._policy)


def _seen(verdict: Verdict) -> tuple[str, str]:
    """The outcome of a verdict, and why."""
    if verdict.verdict == "diverged":
        return BAD, verdict.reasons[0] if verdict.reasons else "it diverges"
    if verdict.verdict == "match":
        return GOOD, "it matches"
    return SKIPPED, verdict.reasons[0] if verdict.reasons else "it cannot be judged"


def _why(found: Bisection, package: str, between: Sequence[str]) -> str:
    if between:
        return (
            f"{package} {found.last_good} is good and {found.first_bad} is bad; {', '.join(between)} between them "
            "could not be judged, so that the first bad one is one of these."
        )
    return f"{package} {found.first_bad} is the first that diverges; {found.last_good} before it does not."
