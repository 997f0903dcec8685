"""What repeats from step to step: a step's calls and the layout of its tensors, its *form*.

A decode step differs from the one before it in its rows, its tokens and its tensors' bytes; which operators were
called, with tensors of which shapes, and where these lie among the step's own chunks, is mostly the same. Whoever
reads many steps reads a form once, and of each step what is left: a `StepRecord`.

What a form leaves out: the memory that tensors shared (`event.Value.storage`), which only matters to a reader of
single steps.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import xxhash

from tracereplay.census import Census
from tracereplay.dtypes import nbytes
from tracereplay.errors import DamagedTrace
from tracereplay.event import Request, RowMap, Sampled
from tracereplay.trace import records
from tracereplay.trace.plain import as_place, as_text, pack
from tracereplay.trace.records import Located

__all__ = ["ELSEWHERE", "CallForm", "Form", "Forms", "StepRecord"]

KEPT = 100_000  # values and calls of the forms that a segment keeps; some 40 MB
ELSEWHERE = -2  # the chunk of a value whose bytes an earlier step has; each step says where


class CallForm(NamedTuple):
    """A call, as in `event.Call`; values and row maps by their places in the step's lists."""

    site: str
    number: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rows_in: int
    rows_out: int
    written: tuple[tuple[int, int], ...]  # index of the input, place of the value
    fed: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Form:
    """What steps have in common. Two steps of a segment have one form if, and only if, it is one object, as long
    as somebody holds it.

    Args:
        values: where their bytes lie; chunks are counted from the step's first own one. A value that an earlier
            step stored has the chunk `ELSEWHERE`.
        calls: in order of execution.
        maps: number of row maps.
        size: bytes of all values, each as often as calls name it.
        uses: how often calls name each row map.
    """

    values: tuple[Located, ...]
    calls: tuple[CallForm, ...]
    maps: int
    size: int
    uses: tuple[int, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """Of the calls."""
        return tuple([call.site for call in self.calls])


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step without what its form says; see `event.Step` for what is not said here.

    Args:
        place: in the segment.
        number: of the step.
        form: see there.
        chunk: the step's first own chunk.
        elsewhere: of values with the chunk `ELSEWHERE`, by place: chunk, tensor, pieces, skip, strided.
        maps: row maps; the first is the step's own.
    """

    place: int
    number: int
    form: Form
    chunk: int
    elsewhere: Mapping[int, tuple[int, int, int, int, bool]]
    maps: Sequence[RowMap]
    sampled: tuple[Sampled, ...]
    notes: tuple[str, ...]
    requests: tuple[Request, ...]
    weight_updates: int
    census: Census | None
    padded: int

    @property
    def rows(self) -> RowMap:
        """Row map of the model's forward."""
        return self.maps[0]

    @property
    def size(self) -> int:
        """Bytes of the calls' values and rows, each as often as it is named."""
        return self.form.size + sum(
            rows.nbytes * uses for rows, uses in zip(self.maps, self.form.uses, strict=True)
        )


class Forms:
    """The forms of a segment, each once; of those that nobody holds, the ones used lately (`KEPT`).

    Args:
        names: the sites' names by slot; may grow.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._known: WeakValueDictionary[bytes, Form] = WeakValueDictionary()
        self._lately: OrderedDict[bytes, Form] = OrderedDict()
        self._parts = 0
        self._lock = threading.Lock()

    def read(self, place: int, data: Mapping[str, Any], first: int) -> StepRecord:
        """A step's record.

        Args:
            place: of the step in the segment.
            data: the contents of its STEP frame.
            first: number of the first chunk that the step before does not have.

        Raises:
            DamagedTrace: it has not the parts of a step.
        """
        try:
            maps = [records.read_rows(m) for m in data["maps"]]
            values, elsewhere = _apart(data["values"], first)
            key = xxhash.xxh3_128_digest(pack([values, data["calls"], len(maps)]))
            form = self._known.get(key) or _form(values, data["calls"], len(maps), self._names)
            form = self._used(key, form)
            for place_of, told in elsewhere.items():
                records.check_located(form.values[place_of]._replace(**_LEFT(*told)._asdict()))
            return StepRecord(
                place, as_place(data["number"]), form, first, elsewhere, maps,
                tuple([records.read_sampled(s) for s in data["sampled"]]),
                tuple(map(as_text, data["notes"])),
                tuple([records.read_request(r) for r in data["requests"]]),
                as_place(data["weights"]),
                records.read_census(data["census"]) if "census" in data else None,
                as_place(data.get("padded", 0)),
            )  # fmt: skip
        except records.WRONG as error:
            raise DamagedTrace(f"A step record cannot be read: {error!r}.") from error

    def _used(self, key: bytes, form: Form) -> Form:
        """The form of that key, which is kept for now."""
        with self._lock:
            form = self._known.setdefault(key, form)
            if key not in self._lately:
                self._parts += _parts(form)
            self._lately[key] = form
            self._lately.move_to_end(key)
            while self._parts > KEPT and len(self._lately) > 1:
                self._parts -= _parts(self._lately.popitem(last=False)[1])
        return form


def _parts(form: Form) -> int:
    return len(form.values) + len(form.calls)


class _LEFT(NamedTuple):
    """What of a `Located` a form does not say where the bytes are an earlier step's."""

    chunk: int
    tensor: int
    pieces: int
    skip: int
    strided: bool


def _apart(
    values: Sequence[Sequence[Any]], first: int
) -> tuple[list[tuple[Any, ...]], dict[int, tuple[Any, ...]]]:
    """The values as a form has them, and where the bytes of the others are."""
    found: list[tuple[Any, ...]] = []
    elsewhere: dict[int, tuple[Any, ...]] = {}
    for place, value in enumerate(values):
        dtype, shape, strides, _, _, _, chunk, tensor, pieces, skip, strided = value[:11]
        if chunk >= first:
            found.append((dtype, shape, strides, chunk - first, tensor, pieces, skip, strided))
        elif chunk == -1:
            found.append((dtype, shape, strides, -1, tensor, pieces, skip, strided))
        else:
            found.append((dtype, shape, strides, ELSEWHERE, 0, 1, 0, False))
            elsewhere[place] = (chunk, tensor, pieces, skip, strided)
    return found, elsewhere


def _form(
    values: Sequence[tuple[Any, ...]], calls: Sequence[Sequence[Any]], maps: int, names: Mapping[int, str]
) -> Form:
    located = tuple(_located(*value) for value in values)
    made = tuple(_call(call, names) for call in calls)
    sizes = [nbytes(value.dtype, value.shape) for value in located]
    total, uses = 0, [0] * maps
    for call in made:
        places = _places(call)
        if max(places, default=-1) >= len(sizes) or max(call.rows_in, call.rows_out) >= maps:
            raise IndexError("a call names a value or a row map that the step has not")
        total += sum(sizes[place] for place in places)
        uses[call.rows_in] += 1
        uses[call.rows_out] += 1
    return Form(located, made, maps, total, tuple(uses))


def _places(call: CallForm) -> list[int]:
    return [*call.inputs, *call.outputs, *(value for _, value in call.written)]


def _located(
    dtype: str, shape: Sequence[int], strides: Sequence[int], chunk: int, tensor: int, pieces: int, skip: int,
    strided: bool,
) -> Located:  # fmt: skip
    found = Located(dtype, tuple(shape), tuple(strides), -1, 0, 0, chunk, tensor, pieces, skip, strided)
    records.check_located(found if chunk != ELSEWHERE else found._replace(chunk=0))
    return found


def _call(data: Sequence[Any], names: Mapping[int, str]) -> CallForm:
    slot, number, inputs, outputs, rows_in, rows_out, written = data[:7]
    return CallForm(
        names[slot], as_place(number), tuple(map(as_place, inputs)), tuple(map(as_place, outputs)),
        as_place(rows_in), as_place(rows_out),
        tuple((as_place(index), as_place(value)) for index, value in written),
        tuple(map(as_place, data[7])) if len(data) > 7 else None,
    )  # fmt: skip
