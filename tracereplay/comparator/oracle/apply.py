"""Comparing two passes with references: each row that both have against its exact value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracereplay.comparator.numbers.dtypes import is_float, widen
from tracereplay.comparator.numbers.results import Rows
from tracereplay.comparator.numbers.tables import LANE, Array, Ints, PassIndex, Table, TableKey, gather, pair_rows
from tracereplay.comparator.oracle.attention import Attention
from tracereplay.comparator.oracle.duel import Duel
from tracereplay.comparator.oracle.references import Inputs, NoReference, reference_for
from tracereplay.errors import MissingWeights
from tracereplay.event import Site
from tracereplay.trace.parameters import Parameters
from tracereplay.verdict.oracle import NotCovered, Oracle, OracleFinding

__all__ = ["consult"]

Floats = npt.NDArray[np.float64]
BLOCK = 1 << 21  # elements of the widest tensor that are in float64 at once


def consult(
    golden: PassIndex, candidate: PassIndex, rows: Rows, weights: Parameters, *, same_inputs: bool
) -> Oracle:
    """Compares every operator's outputs with a reference in float64.

    Args:
        golden, candidate: the passes.
        rows: what row numbers stand for.
        weights: of golden's operators.
        same_inputs: whether the candidate had golden's inputs. If not, its reference is computed from its own.
    """
    findings: list[OracleFinding] = []
    left: list[NotCovered] = []
    for site in _in_order(golden):
        if site.role == "sampler":
            continue  # it draws
        try:
            findings += _Operator(site, golden, candidate, rows, weights, same_inputs).findings()
        except (NoReference, MissingWeights) as error:
            reason = str(error)
            left.append(NotCovered(site.name, site.operator, reason[:1].lower() + reason[1:].rstrip(".")))
    return Oracle(tuple(findings), tuple(left), same_inputs)


def _in_order(golden: PassIndex) -> list[Site]:
    return [golden.sites[name] for name in golden.calls.first if name in golden.sites]


@dataclass(frozen=True)
class _Operator:
    """One operator of both passes."""

    site: Site
    golden: PassIndex
    candidate: PassIndex
    rows: Rows
    weights: Parameters
    same_inputs: bool

    def findings(self) -> list[OracleFinding]:
        """One for each output.

        Raises:
            NoReference, MissingWeights: there is nothing to compare it with.
        """
        mine = self._tables(self.golden, "out")
        theirs = self._tables(self.candidate, "out")
        if not mine or len(mine) != len(theirs):
            raise NoReference("its outputs were not recorded on both sides")
        exact = [self._exact(self.golden, mine)]
        exact.append(exact[0] if self.same_inputs else self._exact(self.candidate, theirs))
        found = []
        for k, (table, other) in enumerate(zip(mine, theirs, strict=True)):
            duel = self._duel(k, table, other, exact)
            errors = duel.errors
            found.append(
                OracleFinding(self.site.name, self.site.operator, None, k, duel.rows, *errors, duel.nearer)
            )
        return found

    def _tables(self, index: PassIndex, side: str) -> list[Table]:
        keys = sorted((k for k in index.tables if k.site == self.site.name and k.side == side), key=_index)
        return [index.tables[key] for key in keys]

    def _duel(self, k: int, mine: Table, theirs: Table, exact: Sequence[_Exact]) -> Duel:
        signature = mine.signature(), theirs.signature()
        if signature[0] is None or signature[1] is None or signature[0][1] != signature[1][1]:
            raise NoReference(f"its output {k} has another form on the two sides")
        if not is_float(signature[0][0]) or not is_float(signature[1][0]):
            raise NoReference(f"its output {k} is not of floating-point numbers")
        pairs = pair_rows(mine, theirs)
        known = exact[0].has(mine.ids[pairs.golden]) & exact[1].has(theirs.ids[pairs.candidate])
        a, b = pairs.golden[known], pairs.candidate[known]
        if not len(a):
            raise NoReference("none of its rows has all that it was computed from")
        duel, stride = Duel(), max(1, BLOCK // max(exact[0].width, 1))
        for start in range(0, len(a), stride):
            i, j = a[start : start + stride], b[start : start + stride]
            of_mine = exact[0].outputs(mine.ids[i])[k]
            of_theirs = of_mine if self.same_inputs else exact[1].outputs(theirs.ids[j])[k]
            if of_mine.shape[1] != signature[0][1]:
                raise NoReference(
                    f"its output {k} has {signature[0][1]} elements a row, {of_mine.shape[1]} expected"
                )
            duel.add(gather(mine, i), gather(theirs, j), (of_mine, of_theirs), (signature[0][0], signature[1][0]))
        return duel

    def _exact(self, index: PassIndex, outputs: Sequence[Table]) -> _Exact:
        inputs = self._tables(index, "in")
        if not inputs:
            raise NoReference("its inputs were not recorded")
        for i, table in enumerate(inputs):
            if table.signature() is None:
                raise NoReference(f"its input {i} changes its form from call to call")
        widths = [signature[1] for table in outputs if (signature := table.signature())]
        return _Exact(self.site, inputs, widths, self._weight(), self.rows)

    def _weight(self) -> Callable[[str], Floats | None]:
        known = {parameter.name: parameter for parameter in self.site.parameters}
        cache: dict[str, Floats] = {}

        def weight(name: str) -> Floats | None:
            if name not in known:
                return None
            if not is_float(known[name].dtype):
                raise NoReference(f"its {name} is quantized ({known[name].dtype})")
            if name not in cache:
                cache[name] = widen(self.weights.load(known[name]), known[name].dtype).astype(np.float64)
            return cache[name]

        return weight


class _Exact:
    """What an operator should have given for rows of one pass, computed when they are asked for."""

    def __init__(
        self, site: Site, inputs: Sequence[Table], widths: Sequence[int],
        weight: Callable[[str], Floats | None], rows: Rows,
    ) -> None:  # fmt: skip
        self._site, self._inputs, self._widths, self._weight, self._rows = site, inputs, widths, weight, rows
        self._places = [np.argsort(table.ids, kind="stable") for table in inputs]
        self._attention: Attention | None = None
        if site.role == "attention":
            if len(inputs) < 3:
                raise NoReference("its queries, keys and values were not recorded")
            keys = rows.of(inputs[1])
            key, value = (_floats(table, np.arange(len(table.ids))) for table in inputs[1:3])
            self._attention = Attention(site, keys, key, value)
        else:
            self._reference = reference_for(site)

    @property
    def width(self) -> int:
        return max(table.tensors[0].width for table in self._inputs) if self._inputs else 1

    def has(self, ids: Ints) -> npt.NDArray[np.bool_]:
        """Whether all inputs of these rows were recorded."""
        found = np.ones(len(ids), bool)
        for table in self._inputs:
            found &= np.isin(ids, table.ids)
        if self._attention is not None:
            found &= self._attention.covered(self._rows.keys[ids % LANE])
        return found

    def outputs(self, ids: Ints) -> Sequence[Floats]:
        tensors = [_floats(table, self._at(i, ids)) for i, table in enumerate(self._inputs)]
        if self._attention is not None:
            return [self._attention.rows(self._rows.keys[ids % LANE], tensors[0])]
        return self._reference(self._site, Inputs(tensors, self._weight, self._widths))

    def _at(self, i: int, ids: Ints) -> Ints:
        order = self._places[i]
        found: Ints = order[np.searchsorted(self._inputs[i].ids, ids, sorter=order)]
        return found


def _floats(table: Table, picks: Ints) -> Floats:
    dtype = table.tensors[0].dtype
    array: Array = gather(table, picks)
    wide: Floats = (widen(array, dtype) if is_float(dtype) else array).astype(np.float64)
    return wide


def _index(key: TableKey) -> int:
    return key.index
