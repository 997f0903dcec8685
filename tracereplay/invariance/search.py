"""At how many rows in a call an operator begins to compute otherwise: calls of chosen sizes, halving the range.

A call of k rows is made by serving beginnings of the workload's sequences together, k tokens in all. Their rows
are rows of the base run, and are compared with those that it computed in calls below or above the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tracereplay.comparator.judging.invariance import compare_runs
from tracereplay.comparator.numbers.align import index_pass
from tracereplay.comparator.numbers.results import Rows
from tracereplay.comparator.numbers.tables import PassIndex, TableKey
from tracereplay.engines.request import PassRequest, Serving
from tracereplay.launch import EngineProcess, Launchable
from tracereplay.launch.jobs import record_pass
from tracereplay.launch.making import engine_header, making, run_header
from tracereplay.passes import RECORD
from tracereplay.recorder.options import Options
from tracereplay.sampling import LORA
from tracereplay.trace import Trace, open_trace
from tracereplay.verdict.invariance import SURE, Count, flips_between
from tracereplay.workload import Prompt, Workload

__all__ = ["Search"]


class Search:
    """The range in which the number lies, and how it is made narrower.

    Args:
        key: the tensor that shows it.
        counts: rows by the sizes of their calls, of all that was varied.
    """

    def __init__(self, key: TableKey, counts: Sequence[Count]) -> None:
        self._key, self._counts = key, counts
        self.between = flips_between(counts)

    @property
    def open(self) -> bool:
        """Whether more than one number is left."""
        return self.between is not None and self.between[1] - self.between[0] > 1

    def run(
        self, engine: Launchable, process: EngineProcess, folder: Path, workload: Workload, base: PassIndex,
        rows: Rows,
    ) -> None:  # fmt: skip
        """Halves the range until one number is left, or a call of the size in its middle cannot be had.

        Args:
            engine: that was started.
            process: as for the base run.
            folder: a directory for the traces, which does not exist.
            workload: the base run's, prompts as token ids.
            base: the base run.
            rows: its rows.
        """
        while self.open and self.between is not None:
            low, high = self.between
            size = (low + high) // 2
            asked = _calls_of(size, workload, rows)
            if asked is None:
                return
            path = folder / f"{size}.trace"
            _record(engine, process, path, asked, Options(sites=(self._key.site,)))
            with open_trace(path) as trace:
                flipped = self._flipped(trace, size, base, rows)
            if flipped is None:
                return
            self.between = (low, size) if flipped else (size, high)

    def _flipped(self, trace: Trace, size: int, base: PassIndex, rows: Rows) -> bool | None:
        """Whether calls of ``size`` rows are computed as those above the range are; None if that does not show."""
        assert self.between is not None
        low, high = self.between
        index = index_pass(trace, RECORD, rows.finder.find)
        counts = compare_runs(base, index, rows).counts.get(self._key.site, ())
        sized = [count for count in counts if count.variant == size]
        below, above = [c for c in sized if c.base <= low], [c for c in sized if c.base >= high]
        differ = _differing(below), _differing(above)
        if all(differ):
            return None
        if any(differ):
            return bool(differ[0])
        chance = [(1 - self._share) ** sum(c.rows for c in same) for same in (below, above)]
        return None if min(chance) >= SURE else chance[1] < chance[0]

    @property
    def _share(self) -> float:
        """Of the rows that differ, where some do."""
        differing = [count for count in self._counts if count.differing]
        return _differing(differing) / sum(count.rows for count in differing)


class _Asked(NamedTuple):
    """A workload, and how it is served."""

    workload: Workload
    serving: Serving


def _calls_of(size: int, workload: Workload, rows: Rows) -> _Asked | None:
    """Beginnings of sequences, ``size`` tokens in all, in one group; None if there are fewer tokens.

    The other requests keep their numbers, and follow with one token each.
    """
    # Of its last token no row is computed.
    sequences = {i: list(rows.tokens.get((i, 0), ()))[:-1] for i in range(len(workload.prompts))}
    taken: dict[int, int] = {}
    for request in sorted(sequences, key=lambda request: -len(sequences[request])):
        left = size - sum(taken.values())
        if left and sequences[request]:
            taken[request] = min(left, len(sequences[request]))
    if sum(taken.values()) != size:
        return None
    prompts = []
    for request, prompt in enumerate(workload.prompts):
        kept = {LORA: prompt.sampling[LORA]} if LORA in prompt.sampling else {}
        ids = sequences[request][: taken.get(request, 1)] or list(prompt.token_ids or ())[:1]
        sampling = {**kept, "max_tokens": 1, "temperature": 0.0, "ignore_eos": True}
        prompts.append(Prompt(tuple(ids), None, sampling))
    others = tuple((request,) for request in sequences if request not in taken)
    return _Asked(replace(workload, prompts=tuple(prompts)), Serving((tuple(taken), *others), "group"))


def _record(engine: Launchable, process: EngineProcess, path: Path, asked: _Asked, options: Options) -> None:
    with making(path, run_header("recording", engine, asked.workload)) as directory:
        directory.update_run(engine=engine_header(engine, process.info))
        request = PassRequest(path.resolve(), RECORD, options=options, serving=asked.serving)
        record_pass(process, directory, asked.workload, request)


def _differing(counts: Sequence[Count]) -> int:
    return sum(count.differing for count in counts)
