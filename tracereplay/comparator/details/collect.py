"""All that a report shows of two traces beyond their verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tracereplay.columns.tensors import LANE, Array, Ints, TableKey
from tracereplay.comparator.details.errors import ErrorMap
from tracereplay.comparator.details.scale import Scale
from tracereplay.comparator.details.values import Digests, Histograms, digests_of, histograms_of
from tracereplay.comparator.numbers.metrics import Floats
from tracereplay.comparator.numbers.results import Comparison, Finding, Mask, Rows
from tracereplay.comparator.numbers.tables import PassIndex
from tracereplay.comparator.tokens.generation import Generation
from tracereplay.comparator.tokens.sampled import Places, Sampling, shared_places
from tracereplay.verdict import Metrics

__all__ = ["Details", "Generated"]

COLUMNS = 1536  # of a map: with 300 sites at most half a megabyte, before it is compressed


@dataclass(frozen=True)
class Generated:
    """What both sides generated.

    Args:
        golden, candidate: the sequences.
        places: the generated tokens that both sides have, with what the candidate would have chosen.
        forced: whether golden's tokens were forced upon the candidate.
    """

    golden: Generation
    candidate: Generation
    places: Places
    forced: bool


@dataclass
class Details:
    """Filled by `compare_traces`, which is given an empty one; empty for traces of isolated replays.

    Args:
        columns: of the maps, at most.
        pass_name: the candidate's pass that is compared operator by operator.
        scale: the rows of both maps.
        outputs, inputs: the maps, of what operators give and of what arrives at them.
        sites: in golden's order of execution.
        steps: the step that computed each row, of golden and of the candidate; -1: none. ``int64 [rows]``.
        inherited: by site the worst output in a pass in which nothing is fed; empty where there is no such pass.
        digests: by site, of its first inputs.
        histograms: of the first divergence.
        generated: tokens and logprobs.
    """

    columns: int = COLUMNS
    pass_name: str = ""
    scale: Scale | None = None
    outputs: ErrorMap | None = None
    inputs: ErrorMap | None = None
    sites: tuple[str, ...] = ()
    steps: tuple[Ints, Ints] | None = None
    inherited: dict[str, Metrics] = field(default_factory=dict)
    digests: Mapping[str, Sequence[Digests]] = field(default_factory=dict)
    histograms: Histograms | None = None
    generated: Generated | None = None

    # -- what is told while passes are compared -------------------------------------------------------------

    def begin(self, pass_name: str, golden: PassIndex, candidate: PassIndex, rows: Rows) -> None:
        """The judged pass is about to be compared."""
        self.pass_name = pass_name
        self.scale = Scale(rows.keys, self.columns)
        self.outputs = ErrorMap(self.scale, ("out", "written"))
        self.inputs = ErrorMap(self.scale, ("in",))
        self.sites = tuple(golden.calls.first)
        self.steps = (_steps(golden, self.scale), _steps(candidate, self.scale))

    def compared(self, key: TableKey, numbers: Ints) -> None:
        """See `Watch`."""
        for each in self._maps:
            each.compared(key, numbers)

    def differ(self, key: TableKey, keys: Array, ratio: Floats, beyond: Mask) -> None:
        """See `Watch`."""
        for each in self._maps:
            each.differ(key, keys, ratio, beyond)

    def end(self, golden: PassIndex, candidate: PassIndex, first: Finding | None) -> None:
        """The judged pass was compared."""
        self.digests = digests_of(golden, candidate)
        self.histograms = None if first is None else histograms_of(first, golden, candidate)

    def free(self, comparison: Comparison) -> None:
        """The pass in which nothing is fed was compared as a whole."""
        for finding in comparison.findings:
            known = self.inherited.get(finding.key.site)
            if finding.kind == "operator" and finding.rows:
                worse = known is None or finding.metrics.relative_l2 > known.relative_l2
                self.inherited[finding.key.site] = finding.metrics if known is None or worse else known

    def generation(
        self, golden: Sampling, candidate: Sampling, mine: Generation, theirs: Generation, *, forced: bool
    ) -> None:
        """Tokens were compared; see `compare_tokens`."""
        self.generated = Generated(mine, theirs, shared_places(golden, candidate), forced)

    @property
    def _maps(self) -> Sequence[ErrorMap]:
        return [each for each in (self.outputs, self.inputs) if each is not None]


def _steps(index: PassIndex, scale: Scale) -> Ints:
    """The step of each row, by the table that has most of them; -1 where it has none."""
    found = np.full(len(scale), -1, np.int64)
    table = max(index.tables.values(), key=lambda table: len(table.ids), default=None)
    if table is not None and len(table.ids):
        every = np.arange(len(table.ids))
        found[scale.places_of(table.ids % LANE)] = index.calls.steps(table.order(every))
    return found
