"""Runs golden's workload in several ways, and turns the noise between them and golden into a policy.

variations ──replay──▶ traces ──measure_noise──▶ Noise ... ──earn──▶ Policy, and on what it was measured
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tracereplay.calibrator.noise import MARGIN, Earned, Noise, bound, earn, measure_noise
from tracereplay.comparator import Policy
from tracereplay.comparator.numbers.policy_file import policy_text
from tracereplay.engines.known import family_of
from tracereplay.errors import OtherWeights, TracereplayError, UsageError
from tracereplay.launch import Launchable, jobs
from tracereplay.launch.variations import Variation
from tracereplay.trace import Trace, open_trace
from tracereplay.verdict.bisection import Skipped
from tracereplay.verdict.measures import rounded_up

__all__ = ["Calibration", "Run", "calibrate"]

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what was varied, in words, and how it differs from golden."""

    variation: str
    noise: Noise

    @property
    def words(self) -> str:
        """The run in one line."""
        noise = self.noise
        drift = "" if noise.logprob_max is None else f", logprobs by {noise.logprob_max:.3g}"
        tokens = f", {noise.tokens_differ} of {noise.tokens} greedy tokens" if noise.tokens_differ else ""
        part = "" if noise.share == 1 else f", {noise.share:.0%} of calls compared"
        return f"{self.variation}; differs by {noise.largest:.3g} of the default{drift}{tokens}{part}"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Noise between runs that should agree, and the resulting policy.

    Args:
        golden: name of the golden trace.
        digest: its digest.
        engine: the engine that golden was recorded under, in words.
        date: UTC, ISO 8601.
        runs: what was run.
        skipped: variations that could not be run, and why.
        earned: the tolerances.
        logprob_max: largest logprob difference of all runs, nats; None without logprobs.
        policy: what to compare with.
    """

    golden: str
    digest: str
    engine: str
    date: str
    runs: tuple[Run, ...]
    skipped: tuple[Skipped, ...]
    earned: tuple[Earned, ...]
    logprob_max: float | None
    policy: Policy

    @property
    def unfit(self) -> Mapping[str, str]:
        """Places that differ in a way that no tolerance allows, and how."""
        return {place: why for run in self.runs for place, why in run.noise.unfit.items()}

    @property
    def text(self) -> str:
        """As a policy file."""
        about: dict[str, str | list[str]] = {
            "tracereplay": version("tracereplay"), "date": self.date, "golden": self.golden, "digest": self.digest,
            "engine": self.engine, "runs": [run.words for run in self.runs],
            "skipped": [f"{skipped.name}: {skipped.reason}" for skipped in self.skipped],
            "noise": [f"{place} {why}; no tolerance allows that" for place, why in self.unfit.items()],
            "margin": MARGIN,
        }  # fmt: skip
        return policy_text(self.policy, {key: value for key, value in about.items() if value})


def calibrate(
    engine: Launchable, golden: Path, variations: Sequence[Variation], *, runs: int = 1,
    settings: Mapping[str, Any] | None = None, model: Path | None = None, log: Path | None = None,
    keep: Path | None = None, report: Report = lambda line: None,
) -> Calibration:  # fmt: skip
    """Replays ``golden`` under each variation and derives tolerances from the noise.

    Args:
        engine: an engine known to be good.
        golden: the golden trace.
        variations: what to vary; one that the engine refuses is skipped with the reason.
        runs: number of runs of each variation.
        settings: engine arguments of all runs that override those of the golden workload.
        model: checkpoint directory, if it has moved since recording.
        log: file for what the engines print, one run after the other.
        keep: an empty directory for the runs' traces, ``1-batch.trace`` and so on; None for not keeping them.
        report: called with each line of progress.

    Raises:
        UsageError: ``golden`` is not a recording, or no run could be made; the message gives the reasons.
    """
    made: list[Run] = []
    skipped: list[Skipped] = []
    with open_trace(golden) as source:
        source.require_recording()
        for variation in [variation for variation in variations for _ in range(runs)]:
            name = variation.words(engine)
            if name in {s.name for s in skipped}:
                continue
            report(f"Run {len(made) + 1}, {name}")
            path = None if keep is None else keep / f"{len(made) + 1}-{variation.name}.trace"
            given = {**(settings or {}), **variation.settings}
            try:
                with _room(path) as out:
                    started = variation.applied(engine)
                    jobs.replay(started, golden, out, settings=given, model=model, log=log, report=report)
                    report("Comparing")
                    with open_trace(out) as candidate:
                        candidate.offer_base(source)
                        noise = measure_noise(source, candidate)
            except OtherWeights:  # so has every other run
                raise
            except TracereplayError as error:
                report(f"Skipped: {error.brief}")
                skipped.append(Skipped(name, error.brief))
            else:
                made.append(Run(name, noise))
        if not made:
            raise UsageError(f"No run could be made. {' '.join(f'{s.name}: {s.reason}' for s in skipped)}")
        return _calibration(golden, source, made, skipped)


@contextmanager
def _room(path: Path | None) -> Iterator[Path]:
    """Where a run's trace goes; without ``path`` it is removed again, and with one if the run fails."""
    with tempfile.TemporaryDirectory(prefix="tracereplay-") as folder:
        try:
            yield path or Path(folder) / "run.trace"
        except BaseException:
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
            raise


def _calibration(golden: Path, source: Trace, made: Sequence[Run], skipped: Sequence[Skipped]) -> Calibration:
    earned = earn([run.noise for run in made])
    drifts = [run.noise.logprob_max for run in made if run.noise.logprob_max is not None]
    allowed = max(Policy().logprob_max_abs, rounded_up(bound(drifts)))
    policy = Policy(calibration=tuple(found.rule for found in earned), logprob_max_abs=allowed)
    engine = source.run.engine
    versions, resolved = source.run.engine_facts("versions"), source.run.engine_facts("settings")
    release = versions.get(family_of(engine).package)
    parts = [engine.get("name"), release, resolved.get("dtype"), engine.get("device")]
    return Calibration(
        golden.name, source.digest(), ", ".join(str(part) for part in parts if part), _now(), tuple(made),
        tuple(skipped), earned, max(drifts, default=None), policy,
    )  # fmt: skip


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
