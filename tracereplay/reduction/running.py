"""Tries under an engine: what is kept of golden is replayed, so that it is known to show the same to others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tracereplay.bisector.minimal import minimise
from tracereplay.checks.engine import KeptEngine, planned
from tracereplay.launch import Launchable
from tracereplay.reduction.part import Part
from tracereplay.reduction.search import fewer_requests, fewer_tokens, first_that_shows
from tracereplay.reduction.tries import Tries
from tracereplay.reduction.whole import CANDIDATE, Whole
from tracereplay.trace import open_trace
from tracereplay.trace.cutting import Cut, Cutter

__all__ = ["MODES", "Rerun", "narrowed_by_runs"]

MODES = ("injected", "rerun")  # of verdicts that an engine's replay can give again


@dataclass(frozen=True)
class Rerun:
    """How parts are replayed.

    Args:
        whole: the two traces.
        engine: the candidate's.
        kept: which is started once for all of them.
        model: the checkpoint, if it has moved.
        settings: engine arguments that override golden's.
    """

    whole: Whole
    engine: Launchable
    kept: KeptEngine
    model: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def make(self, part: Part, folder: Path) -> None:
        """Writes golden's part, and what a replay of it gives, as far as that is about the same operators.

        Raises:
            TracereplayError: see `KeptEngine.replay`.
        """
        replayed = folder / "replayed.trace"
        with open_trace(self.whole.write_golden(part, folder)) as golden:
            injected = self.whole.verdict.mode == "injected"
            plan = planned(self.engine, golden, self.settings, self.model, injected=injected)
            self.kept.replay(plan, golden, replayed)
        with open_trace(replayed) as made:
            every = tuple(range(len(made.run.prompts)))
            of = self.whole.cuts(part)[1]
            kept = Cut(every, sites=of.sites, positions=of.positions, kernels=of.kernels)
            Cutter(made).cut(folder / CANDIDATE, kept)
        shutil.rmtree(replayed)


def narrowed_by_runs(whole: Whole, part: Part, found: Tries) -> Part | None:
    """The smallest part whose replay shows the same; None: none does.

    Args:
        whole: the two traces.
        part: what shows it without an engine.
        found: tries that are replayed.
    """
    base = first_that_shows(_larger(whole, part), found.shows)
    if base is None:
        return None
    first = whole.verdict.first_divergence
    if len(base.requests) > 1:
        base = fewer_requests(base, found.shows, None if first is None else first.request)
    base = fewer_tokens(whole, base, found.shows)
    return _fewer_operators(whole, base, found)


def _larger(whole: Whole, part: Part) -> Iterator[Part]:
    """Parts from the one that shows it without an engine on: what is left out may have been needed."""
    yield part
    yield replace(part, positions=(0, None))
    yield replace(part, positions=(0, None), tokens={})
    if (first := whole.verdict.first_divergence) is not None:
        tokens = whole.made_until(first.step)
        yield Part(tuple(sorted(tokens)), tokens, part.units, (0, None), part.kernels)
    yield Part(whole.requests, {}, part.units, (0, None), part.kernels)
    yield whole.part()


def _fewer_operators(whole: Whole, part: Part, found: Tries) -> Part:
    """Without operators that need not be fed: those before the fault that give the same bits by themselves."""
    units = range(len(whole.units)) if part.units is None else part.units
    first = whole.verdict.first_divergence
    last = None if first is None else whole.unit_of(first.site)
    order = sorted(units, key=lambda n: (n != last, -n))  # what is near the fault is likely to be needed
    smallest = minimise(order, lambda some: found.shows(replace(part, units=frozenset(some))))
    return replace(part, units=frozenset(smallest.members))
