"""The two traces that are reduced: what they show, what they are made of, and parts of them written anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tracereplay.comparator import Policy, compare_traces
from tracereplay.comparator.numbers.align import sites_of
from tracereplay.comparator.tokens.generation import read_generation
from tracereplay.engines.naming import map_of
from tracereplay.passes import INJECTED, ISOLATED, RECORD, RERUN
from tracereplay.recorder.choosing import Choice
from tracereplay.reduction.part import Part
from tracereplay.reduction.shown import Shown, shown_by
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.cutting import Cut, Cutter
from tracereplay.verdict import Verdict

__all__ = ["CANDIDATE", "GOLDEN", "Unit", "Whole"]

GOLDEN, CANDIDATE = "golden.trace", "candidate.trace"


class Unit(NamedTuple):
    """Operators of both sides that are kept or dropped together: paired ones.

    Args:
        golden, candidate: names of sites.
    """

    golden: frozenset[str]
    candidate: frozenset[str]


class Whole:
    """Two traces, compared.

    Args:
        golden, candidate: open.
        policy: tolerances; the defaults if None.
    """

    def __init__(self, golden: Trace, candidate: Trace, policy: Policy | None) -> None:
        self.golden, self.candidate, self.policy = golden, candidate, policy
        self.verdict = compare_traces(golden, candidate, policy)
        self.shown = shown_by(self.verdict, golden, candidate)
        self._cutters = Cutter(golden), Cutter(candidate)
        self._same_golden = candidate.run.golden == golden.digest()
        self.pass_name = next(n for n in (ISOLATED, INJECTED, RERUN, RECORD) if n in candidate.passes)

    # -- what they are made of ----------------------------------------------------------------------------

    @property
    def requests(self) -> tuple[int, ...]:
        return tuple(range(len(self.golden.run.prompts)))

    @cached_property
    def prompts(self) -> tuple[int, ...]:
        """The length of each request's prompt."""
        return tuple(len(prompt.token_ids or ()) for prompt in self.golden.run.prompts)

    @cached_property
    def made(self) -> Mapping[int, int]:
        """By request the tokens that golden generated, of its longest sequence."""
        found: dict[int, int] = {}
        for (request, _), tokens in read_generation(self.golden, RECORD).tokens.items():
            found[request] = max(found.get(request, 0), len(tokens) - self.prompts[request])
        return found

    def made_until(self, step: int) -> dict[int, int]:
        """By request that had begun the tokens that golden had generated after that step, at least one."""
        found: dict[tuple[int, int], int] = {}
        for record in self.golden.records(RECORD, self.golden.ranks(RECORD)[0]):
            if record.number <= step:
                for request, sequence, _ in record.rows.tolist():
                    found.setdefault((request, sequence), 0)
                for sampled in record.sampled:
                    key = sampled.key.request, sampled.key.sequence
                    found[key] = found.get(key, 0) + 1
        most: dict[int, int] = {}
        for (request, _), count in found.items():
            if request in self.requests:
                most[request] = max(most.get(request, 1), count)
        return most

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """In golden's order of execution."""
        return tuple(_units(self.golden, self.candidate, self.pass_name))

    def unit_of(self, site: str) -> int:
        """The unit of a site, as verdicts call it; the last one if there is no such site."""
        found = (n for n, unit in enumerate(self.units) if site in unit.candidate or site in unit.golden)
        return next(found, len(self.units) - 1)

    # -- parts --------------------------------------------------------------------------------------------

    def part(self) -> Part:
        """All of it."""
        return Part(self.requests)

    def cuts(self, part: Part) -> tuple[Cut, Cut]:
        """What a part is of golden and of the candidate."""

        def names(chosen: frozenset[int] | None, side: int) -> frozenset[str] | None:
            if chosen is None:
                return None
            return frozenset(name for n in chosen for name in self.units[n][side])

        # A request that ended by itself keeps its end: a candidate that goes on is to be noticed.
        tokens = {request: n for request, n in part.tokens.items() if n < self.made.get(request, 0)}
        golden, candidate = (
            Cut(part.requests, tokens, names(part.units, side), part.positions, names(part.kernels, side))
            for side in (0, 1)
        )
        return golden, candidate

    def write_golden(self, part: Part, folder: Path) -> Path:
        """Writes golden's part; returns its path."""
        self._cutters[0].cut(folder / GOLDEN, self.cuts(part)[0], notes=self.told(part))
        return folder / GOLDEN

    def write_candidate(self, part: Part, folder: Path) -> Path:
        """Writes the candidate's part, beside golden's, of which it is a replay from then on; returns its path."""
        digest = None
        if self._same_golden:
            with open_trace(folder / GOLDEN) as golden:
                digest = golden.digest()
        self._cutters[1].cut(folder / CANDIDATE, self.cuts(part)[1], golden=digest)
        return folder / CANDIDATE

    def judge(self, folder: Path, part: Part) -> tuple[Verdict, Shown]:
        """Compares the traces in a folder."""
        with open_trace(folder / GOLDEN) as golden, open_trace(folder / CANDIDATE) as candidate:
            verdict = compare_traces(golden, candidate, self.policy)
            return verdict, shown_by(verdict, golden, candidate, part.requests)

    # -- words --------------------------------------------------------------------------------------------

    def told(self, part: Part) -> list[str]:
        """What was dropped, in sentences for the reader of the reduced golden trace."""
        dropped = "; ".join(self._dropped(part)) or "nothing was dropped"
        return [
            f"Reduced from a trace with the digest {self.golden.digest()}: {dropped}.",
            *Choice(tokens=part.positions if part.positions != (0, None) else None).told(),
        ]

    def _dropped(self, part: Part) -> list[str]:
        found = []
        if len(part.requests) < len(self.requests):
            said = f"{len(part.requests)} of {len(self.requests)} requests ({_listed(part.requests)})"
            found.append(f"it has {said}, numbered anew from 0" if part.requests else "it has no request")
        cut = {r: n for r, n in part.tokens.items() if r in part.requests and n < self.made.get(r, 0)}
        if cut:
            most = max(cut.values())
            found.append("of generated tokens " + (f"at most the first {most}" if most > 1 else "the first"))
        if part.units is not None and len(part.units) < len(self.units):
            found.append(f"operators at {len(part.units)} of {len(self.units)} places")
        return found

    def words(self, part: Part) -> str:
        """A part in a line, for people who wait."""
        units = len(self.units) if part.units is None else len(part.units)
        made = {request: self.made.get(request, 0) for request in part.requests}
        tokens = max((min(part.tokens.get(request, n), n) for request, n in made.items()), default=0)
        said = f"{_count(len(part.requests), 'request')}, {_count(tokens, 'token')}, {_count(units, 'operator')}"
        first, behind = part.positions
        if (first, behind) != (0, None):
            said += f", positions {first} to {'the end' if behind is None else behind - 1}"
        return said


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _listed(numbers: Iterable[int]) -> str:
    every = list(numbers)
    return ", ".join(map(str, every[:8])) + (" ..." if len(every) > 8 else "")


def _order(trace: Trace, name: str) -> list[str]:
    """The sites of a pass that are called, in the order of their first calls."""
    found: dict[str, None] = {}
    seen = set()
    for record in trace.records(name, trace.ranks(name)[0]):
        if record.form not in seen:
            seen.add(record.form)  # held, so that it stays the same object
            found.update(dict.fromkeys(record.form.sites))
    return list(found)


def _units(golden: Trace, candidate: Trace, name: str) -> Iterator[Unit]:
    pairs = map_of(sites_of(golden, RECORD), sites_of(candidate, name).values()).pairs
    mine, theirs = _order(golden, RECORD), _order(candidate, name)
    group = {site: {site} for site in mine}  # golden's sites that stay together
    for pair in pairs.values():
        joined = set().union(*(group.get(site, set()) for site in pair.golden))
        group.update(dict.fromkeys(joined, joined))
    beside: dict[str, set[str]] = {site: set() for site in mine}  # the candidate's, by one of golden's
    waiting: set[str] = set()  # the candidate's alone: they go with what they give something to
    last = mine[-1] if mine else ""
    for site in theirs:
        named = pairs[site].golden if site in pairs else (site,)
        partner = next((name for name in named if name in group), None)
        waiting.add(site)
        if partner in beside:
            beside[partner] |= waiting
            waiting = set()
    if last:
        beside[last] |= waiting
    done: set[str] = set()
    for site in mine:
        if site not in done:
            done |= group[site]
            yield Unit(frozenset(group[site]), frozenset().union(*(beside[g] for g in group[site])))
