"""The base run and those that others are compared with, as tables of rows with one numbering."""

from __future__ import annotations

from contextlib import ExitStack

from tracereplay.comparator.numbers.align import index_pass
from tracereplay.comparator.numbers.exclusions import drawn_at_random, past_the_end
from tracereplay.comparator.numbers.results import Exclusion, Rows
from tracereplay.comparator.numbers.tables import PassIndex
from tracereplay.comparator.tokens.generation import read_generation
from tracereplay.passes import RECORD, RERUN
from tracereplay.trace import Trace
from tracereplay.trace.rows import RowFinder

__all__ = ["Runs"]


class Runs:
    """The base run, and those that others are compared with.

    Args:
        base: its trace.
        traces: closes what is opened.
    """

    def __init__(self, base: Trace, traces: ExitStack) -> None:
        self.base, self._traces = base, traces
        generation = read_generation(base, RECORD)
        finder = RowFinder(generation.tokens)
        index = index_pass(base, RECORD, finder.add)
        self.references: dict[str, PassIndex] = {"": index}
        self.rows = Rows(finder, generation.tokens)
        self.exclusions: tuple[Exclusion, ...] = (
            past_the_end(generation, self.rows), drawn_at_random(generation, index, self.rows)
        )  # fmt: skip

    def index(self, trace: Trace) -> PassIndex:
        """A varied run's rows, numbered as in the base run."""
        return index_pass(trace, RERUN, self.rows.finder.find)

    def refer(self, name: str, trace: Trace) -> PassIndex:
        """Keeps a run for others to be compared with."""
        self.references[name] = self.index(self._traces.enter_context(trace))
        return self.references[name]
