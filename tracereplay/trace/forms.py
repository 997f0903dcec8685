"""What repeats from step to step: a step's calls and the layout of its tensors, its *form*.

A decode step differs from the one before it in its rows, its tokens and its tensors' bytes; which operators were
called, with tensors of which shapes, and where these lie among the step's own chunks, is mostly the same. Whoever
reads many steps reads a form once, and of each step what is left: a `StepRecord`.

What a form leaves out: the memory that tensors shared (`event.Value.storage`), which only matters to a reader of
single steps.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import xxhash

from tracereplay.census import Census
from tracereplay.dtypes import nbytes
from tracereplay.errors import DamagedTrace
from tracereplay.event import Request, RowMap, Sampled
from tracereplay.trace import records
from tracereplay.trace.form_records import ELSEWHERE, apart, is_whole, whole
from tracereplay.trace.plain import as_place, as_text, pack
from tracereplay.trace.records import Located

__all__ = ["ELSEWHERE", "CallForm", "Form", "Forms", "StepRecord"]

KEPT = 100_000  # values and calls of the forms that a segment keeps; some 40 MB
KEPT_BYTES = 2 << 20  # of FORM frames, decoded; what was read of them takes some 20 times as much


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
        away: number of values with the chunk `ELSEWHERE`.
        uses: how often calls name each row map, by its place.
    """

    values: tuple[Located, ...]
    calls: tuple[CallForm, ...]
    maps: int
    size: int
    away: int
    uses: Mapping[int, int]

    @cached_property
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
    company: tuple[int, int, int] | None

    @property
    def rows(self) -> RowMap:
        """Row map of the model's forward."""
        return self.maps[0]

    @property
    def size(self) -> int:
        """Bytes of the calls' values and rows, each as often as it is named."""
        return self.form.size + sum(self.maps[place].nbytes * uses for place, uses in self.form.uses.items())


class Forms:
    """The forms of a segment, each once; of those that nobody holds, the ones used lately (`KEPT`).

    Args:
        names: the sites' names by slot; may grow.
        fetch: gives the contents of the segment's nth FORM frame, and their size in bytes; see `at`.
    """

    def __init__(self, names: Mapping[int, str], fetch: Callable[[int], tuple[dict[str, Any], int]]) -> None:
        self._names = names
        self._fetch = fetch
        self._known: WeakValueDictionary[bytes, Form] = WeakValueDictionary()
        self._lately: OrderedDict[bytes, Form] = OrderedDict()
        self._parts = 0
        self._frames: OrderedDict[int, _Frame] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def read(self, place: int, data: Mapping[str, Any], first: int) -> StepRecord:
        """A step's record.

        Args:
            place: of the step in the segment.
            data: the contents of its STEP frame.
            first: number of the first chunk that the step before does not have; a step that names a form says it.

        Raises:
            DamagedTrace: it has not the parts of a step, or its form not those of a form.
        """
        try:
            maps = [records.read_rows(m) for m in data["maps"]]
            if not is_whole(data):
                form, first = self._frame(data["form"]).form, as_place(data["chunk"])
                away = data.get("elsewhere", ())
                rows = zip(*data["sampled"], strict=True)
            else:
                values, away = apart(data["values"], first)
                form = self._once(values, data["calls"], len(maps))
                rows = iter(data["sampled"])
            elsewhere = _told(form, away)
            if form.maps != len(maps) or len(elsewhere) != form.away:
                raise ValueError("a step that does not fit its form")
            return StepRecord(
                place, as_place(data["number"]), form, first, elsewhere, maps,
                tuple([records.read_sampled(s) for s in rows]),
                tuple(map(as_text, data["notes"])),
                records.read_requests(data),
                as_place(data["weights"]),
                records.read_census(data["census"]) if "census" in data else None,
                as_place(data.get("padded", 0)),
                records.read_company(data.get("company")),
            )  # fmt: skip
        except records.WRONG as error:
            raise DamagedTrace(f"A step record cannot be read: {error!r}.") from error

    def whole(self, data: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """A step's record as version 1 has it, and the bytes of the form that it names (0: none).

        Raises:
            DamagedTrace: the step does not fit its form.
        """
        if is_whole(data):
            return dict(data), 0
        try:
            frame = self._frame(data["form"])
            return whole(frame.record, data), frame.size
        except records.WRONG as error:
            raise DamagedTrace(f"A step record cannot be read: {error!r}.") from error

    def _frame(self, number: Any) -> _Frame:
        """The nth FORM frame."""
        with self._lock:
            known = self._frames.get(as_place(number))
            if known is not None:
                self._frames.move_to_end(number)
                return known
        record, size = self._fetch(number)
        found = _Frame(record, self._once(record["values"], record["calls"], as_place(record["maps"])), size)
        with self._lock:
            self._bytes += size if number not in self._frames else 0
            self._frames[number] = found
            while self._bytes > KEPT_BYTES and len(self._frames) > 1:
                self._bytes -= self._frames.popitem(last=False)[1].size
        return found

    def _once(self, values: Sequence[Sequence[Any]], calls: Sequence[Sequence[Any]], maps: int) -> Form:
        """The form of these parts of a record."""
        lies = [(*value[:3], *value[6:11]) for value in values]
        key = xxhash.xxh3_128_digest(pack([lies, calls, maps]))
        form = self._known.get(key) or _form(lies, calls, maps, self._names)
        with self._lock:
            form = self._known.setdefault(key, form)
            if key not in self._lately:
                self._parts += _parts(form)
            self._lately[key] = form
            self._lately.move_to_end(key)
            while self._parts > KEPT and len(self._lately) > 1:
                self._parts -= _parts(self._lately.popitem(last=False)[1])
        return form


class _Frame(NamedTuple):
    """A FORM frame that was read."""

    record: dict[str, Any]
    form: Form
    size: int


class _Left(NamedTuple):
    """What of a `Located` a form does not say where the bytes are an earlier step's."""

    chunk: int
    tensor: int
    pieces: int
    skip: int
    strided: bool


def _told(form: Form, away: Iterable[Sequence[Any]]) -> dict[int, tuple[int, int, int, int, bool]]:
    """Where the bytes are of the values that an earlier step has, checked."""
    found: dict[int, tuple[int, int, int, int, bool]] = {}
    for place, *rest in away:
        left, value = _Left(*rest[:5]), form.values[as_place(place)]
        if value.chunk != ELSEWHERE or left.chunk < 0:
            raise ValueError("a value that a step has itself, and another does")
        records.check_located(value._replace(**left._asdict()))
        found[place] = left
    return found


def _parts(form: Form) -> int:
    return len(form.values) + len(form.calls)


def _form(
    values: Sequence[tuple[Any, ...]], calls: Sequence[Sequence[Any]], maps: int, names: Mapping[int, str]
) -> Form:
    located = tuple(_located(*value) for value in values)
    made = tuple(_call(call, names) for call in calls)
    sizes = [nbytes(value.dtype, value.shape) for value in located]
    total, uses = 0, Counter[int]()
    for call in made:
        places = _places(call)
        if max(places, default=-1) >= len(sizes) or max(call.rows_in, call.rows_out) >= maps:
            raise IndexError("a call names a value or a row map that the step has not")
        total += sum(sizes[place] for place in places)
        uses.update((call.rows_in, call.rows_out))
    return Form(located, made, maps, total, sum(value.chunk == ELSEWHERE for value in located), uses)


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
