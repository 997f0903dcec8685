"""The kernels of a step, as they stand in its record: written and read one under the other.

    {"names": [[name, schema], ...], "calls": [call, ...], "constants": [constant, ...]}
    call      [name, slot, number, parent, [argument...], {keyword: argument}, [output...], [[tensor, value]...],
               [undeclared...], failed]
    constant  [name, dtype, shape, strides, digest or nil, value or -1]

An argument is plain data (nil, bool, whole number, float, text) or a list that begins with what it is::

    ["t", value]                                a tensor; its place among the step's values
    ["n", name, dtype, shape, strides, start]   a constant of the model, or a view of one
    ["x", dtype, shape, reason]                 a tensor that was not recorded
    ["l", [argument...]]                        a list
    ["o", kind, text, value or -1]              anything else; the value is a generator's state
    ["c", real, imaginary]                      a complex number

Kernels are taken apart when they are asked for: most readers of a step want its operators only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

from tracereplay.errors import DamagedTrace
from tracereplay.event import Argument, Constant, Kernel, LeftOut, Named, Opaque, Value
from tracereplay.trace.plain import as_place, as_text

__all__ = ["Check", "Kernels", "renumbered", "write_kernels"]

MAX_NESTING = 8  # of lists in an argument; schemas know two levels
_WRONG = (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError)

Check = Callable[[Iterable[Value]], None]


def renumbered(kernels: Mapping[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """The record with other places: the tensor that was called n is called ``places[n]``."""

    def number(argument: Any) -> Any:
        if not isinstance(argument, list):
            return argument
        if argument[0] == "t":
            return ["t", places[argument[1]]]
        if argument[0] == "l":
            return ["l", [number(item) for item in argument[1]]]
        if argument[0] == "o" and argument[3] >= 0:
            return [*argument[:3], places[argument[3]]]
        return argument

    calls = [
        [*call[:4], [number(a) for a in call[4]], {k: number(a) for k, a in call[5].items()},
         [number(a) for a in call[6]], [[i, places[n]] for i, n in call[7]], *call[8:]]
        for call in kernels["calls"]
    ]  # fmt: skip
    constants = [[*c[:5], places[c[5]] if c[5] >= 0 else -1] for c in kernels.get("constants", ())]
    return {"names": kernels["names"], "calls": calls, "constants": constants}


def write_kernels(
    kernels: Sequence[Kernel], constants: Iterable[Constant], place: Callable[[Value], int],
    slots: Mapping[str, int],
) -> dict[str, Any]:  # fmt: skip
    """The record of kernels that were read.

    Args:
        kernels: with parents by their places among them.
        constants: see `Kernels.constants`.
        place: of a value among the step's.
        slots: of the sites, by name.
    """
    names: dict[tuple[str, str], int] = {}

    def argument(given: Argument) -> Any:
        match given:
            case Value():
                return ["t", place(given)]
            case Named():
                return ["n", given.name, given.dtype, list(given.shape), list(given.strides), given.start]
            case LeftOut():
                return ["x", given.dtype, list(given.shape), given.reason]
            case Opaque():
                return ["o", given.kind, given.text, -1 if given.state is None else place(given.state)]
            case tuple():
                return ["l", [argument(item) for item in given]]
            case complex():
                return ["c", given.real, given.imag]
        return given

    calls = [
        [names.setdefault((k.name, k.schema), len(names)), slots[k.site], k.call, k.parent,
         [argument(a) for a in k.arguments], {name: argument(a) for name, a in k.keywords.items()},
         [argument(a) for a in k.outputs], [[i, place(v)] for i, v in k.written.items()], list(k.undeclared),
         k.failed]
        for k in kernels
    ]  # fmt: skip
    told = [
        [c.name, c.dtype, list(c.shape), list(c.strides), c.digest, -1 if c.value is None else place(c.value)]
        for c in constants
    ]
    return {"names": [list(name) for name in names], "calls": calls, "constants": told}


class Kernels(Sequence[Kernel]):
    """A step's kernels, read when they are first asked for.

    Args:
        data: the record.
        values: the step's.
        names: sites by their slots.
        check: raises DamagedTrace if the values that they name ask for too much.
    """

    def __init__(
        self, data: Mapping[str, Any], values: Sequence[Value], names: Mapping[int, str], check: Check
    ) -> None:
        self._data = data
        self._values = values
        self._names = names
        self._check = check

    @cached_property
    def _read(self) -> tuple[tuple[Kernel, ...], tuple[Constant, ...]]:
        try:
            known = [(as_text(name), as_text(schema)) for name, schema in self._data["names"]]
            kernels = tuple([self._kernel(known, i, *call[:10]) for i, call in enumerate(self._data["calls"])])
            constants = tuple([self._constant(*c[:6]) for c in self._data.get("constants", ())])
        except _WRONG as error:
            raise DamagedTrace(f"A step's kernels cannot be read: {error!r}.") from error
        self._check(_named(kernels, constants))
        return kernels, constants

    def values(self) -> Iterator[Value]:
        """Every value of the kernels and constants, as often as they name it."""
        return _named(*self._read)

    def order(self) -> dict[int, int]:
        """By identity, the place of each of the step's values, operators' too, in the order of their recording."""
        return {id(value): place for place, value in enumerate(self._values)}

    @property
    def constants(self) -> tuple[Constant, ...]:
        """What they take by name; the first step of a recording has it, the others nothing."""
        return self._read[1]

    def __len__(self) -> int:
        return len(self._read[0])

    @overload
    def __getitem__(self, index: int) -> Kernel: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Kernel, ...]: ...
    def __getitem__(self, index: int | slice) -> Kernel | tuple[Kernel, ...]:
        return self._read[0][index]

    def _kernel(
        self, known: list[tuple[str, str]], place: int, name: Any, slot: Any, number: Any, parent: Any,
        arguments: list[Any], keywords: dict[str, Any], outputs: list[Any], written: list[Any],
        undeclared: list[Any], failed: Any,
    ) -> Kernel:  # fmt: skip
        if type(parent) is not int or not -1 <= parent < place:
            raise ValueError("a kernel inside one that does not come before it")
        return Kernel(
            *known[as_place(name)],
            self._names[slot],
            as_place(number),
            parent,
            tuple([self._argument(a) for a in arguments]),
            {as_text(k): self._argument(a) for k, a in keywords.items()},
            tuple([self._argument(a) for a in outputs]),
            {as_place(i): self._values[as_place(n)] for i, n in written},
            tuple(map(as_place, undeclared)),
            as_text(failed),
        )

    def _constant(self, name: Any, dtype: Any, shape: Any, strides: Any, digest: Any, place: Any) -> Constant:
        value = self._values[as_place(place)] if place != -1 else None
        digest = None if digest is None else as_text(digest)
        return Constant(as_text(name), as_text(dtype), _places(shape), _places(strides), digest, value)

    def _argument(self, data: Any, depth: int = 0) -> Argument:
        if data is None or isinstance(data, bool | int | float | str):
            return data
        if depth > MAX_NESTING or not isinstance(data, list):
            raise ValueError("an argument that is not one")
        kind, *rest = data
        if kind == "t":
            return self._values[as_place(rest[0])]
        if kind == "l":
            return tuple([self._argument(a, depth + 1) for a in rest[0]])
        if kind == "n":
            name, dtype, shape, strides, start = rest
            return Named(as_text(name), as_text(dtype), _places(shape), _places(strides), as_place(start))
        if kind == "x":
            return LeftOut(as_text(rest[0]), _places(rest[1]), as_text(rest[2]))
        if kind == "o":
            state = self._values[as_place(rest[2])] if rest[2] != -1 else None
            return Opaque(as_text(rest[0]), as_text(rest[1]), state)
        if kind == "c":
            return complex(*map(float, rest))
        raise ValueError(f"an argument of kind {kind!r}")


def _places(values: Any) -> tuple[int, ...]:
    return tuple(map(as_place, values))


def _named(kernels: Iterable[Kernel], constants: Iterable[Constant]) -> Iterator[Value]:
    for kernel in kernels:
        yield from _values((*kernel.arguments, *kernel.keywords.values(), *kernel.outputs))
        yield from kernel.written.values()
    yield from (constant.value for constant in constants if constant.value is not None)


def _values(argument: Argument) -> Iterator[Value]:
    if isinstance(argument, Value):
        yield argument
    elif isinstance(argument, Opaque) and argument.state is not None:
        yield argument.state
    elif isinstance(argument, tuple):
        for item in argument:
            yield from _values(item)
