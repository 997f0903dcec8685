"""Checks the shapes given to kernels that do not check them themselves, as listed in kernels.toml."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tracereplay.event import Argument, Named, Value

__all__ = ["Shapes"]

_SIZE = re.compile(r"(\d*)([a-z*])")


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes that keep a kernel within its tensors' memory.

    Args:
        forms: for each tensor argument its shapes, as kernels.toml explains them.
        multiples: arguments whose last size is a multiple of the number that another argument is.
        at_most: arguments whose last size is at most that.
        only: values that plain arguments may have, where they are given.
        below: tensors of integers whose values lie from 0 to below a size of the forms.
    """

    forms: Mapping[str, Sequence[str]]
    multiples: Mapping[str, str] = field(default_factory=dict)
    at_most: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, Sequence[Argument]] = field(default_factory=dict)
    below: Mapping[str, str] = field(default_factory=dict)

    def wrong(self, arguments: Mapping[str, Argument]) -> str | None:
        """Why a call is not one that the kernel takes, as a clause; reads shapes only."""
        try:
            self._sizes(arguments)
        except ValueError as error:
            return str(error)
        for name, argument in arguments.items():
            if isinstance(argument, Value | Named) and name not in self.forms:
                return f"its argument {name!r} is a tensor, which is not expected"
        for name, values in self.only.items():
            if arguments.get(name, values[0]) not in values:
                return f"its argument {name!r} is {str(arguments[name])[:40]}; only {list(values)} is safe"
        for names, fits in ((self.multiples, _is_multiple), (self.at_most, _is_at_most)):
            for name, of in names.items():
                tensor, number = arguments.get(name), arguments.get(of)
                if isinstance(tensor, Value | Named) and not (
                    type(number) is int and fits(tensor.shape[-1], number)
                ):
                    return f"the shape {tensor.shape} of its argument {name!r} does not fit {of} = {number!r}"
        return None

    def wrong_values(self, arguments: Mapping[str, Argument]) -> str | None:
        """Why the values of its integers would take it out of its memory, as a clause; reads those tensors."""
        sizes = self._sizes(arguments)
        for name, size in self.below.items():
            tensor = arguments.get(name)
            if isinstance(tensor, Value) and tensor.dtype != "int64":
                return f"its argument {name!r} is of {tensor.dtype}, not of int64"
            values = tensor.numpy() if isinstance(tensor, Value) else np.empty(0)
            if values.size and not 0 <= values.min() <= values.max() < sizes[size]:
                return f"its argument {name!r} has values outside 0 to {sizes[size]}"
        return None

    def _sizes(self, arguments: Mapping[str, Argument]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for name, forms in self.forms.items():
            argument = arguments.get(name)
            if argument is None and name in arguments:
                continue  # a `Tensor?` that is left out
            if not isinstance(argument, Value | Named):
                raise ValueError(f"its argument {name!r} is not a tensor")
            if not any(_bind(form, argument.shape, sizes) for form in forms):
                raise ValueError(
                    f"its argument {name!r} has the shape {argument.shape}, which does not fit the others"
                )
        return sizes


def _bind(form: str, shape: Sequence[int], sizes: dict[str, int]) -> bool:
    """Whether ``shape`` is of this form, with sizes as they are known; those that were not become known."""
    parts = [(int(times or 1), letter) for times, letter in _SIZE.findall(form)]
    known = dict(sizes)
    if parts[0][1] == "*":
        leading, shape = shape[: len(shape) - len(parts) + 1], shape[len(shape) - len(parts) + 1 :]
        parts = parts[1:]
        if known.setdefault("*", math.prod(leading)) != math.prod(leading):
            return False
    if len(parts) != len(shape):
        return False
    for (times, letter), size in zip(parts, shape, strict=True):
        if size % times or known.setdefault(letter, size // times) != size // times:
            return False
    sizes.update(known)
    return True


def _is_multiple(size: int, number: int) -> bool:
    return number > 0 and size % number == 0


def _is_at_most(size: int, number: int) -> bool:
    return size <= number
