"""Recorded kernels, executed one by one in a sandbox."""

from __future__ import annotations

import math
from typing import Any

from tracereplay.alone.constants import Constants
from tracereplay.alone.permitted import changed, refusal, shapes_of
from tracereplay.alone.sandbox import KERNEL, Outcome, Sandbox
from tracereplay.comparator.kernels.isolated import draws
from tracereplay.dtypes import nbytes
from tracereplay.errors import MissingWeights
from tracereplay.event import Argument, Kernel, LeftOut, Named, Opaque, Value
from tracereplay.trace import TensorBytes

__all__ = ["KernelRunner", "is_custom", "plain_argument", "why_no_reference"]

KEPT = 4 << 30  # bytes of constants that a child holds at once


class KernelRunner:
    """Executes kernels of one rank's recording.

    Args:
        sandbox: where they are executed.
        constants: the tensors they take by name.
        reference: whether each aten call is executed on float64 inputs too.
    """

    def __init__(self, sandbox: Sandbox, constants: Constants, *, reference: bool = False) -> None:
        self._sandbox = sandbox
        self._constants = constants
        self.reference = reference
        self._kept: dict[str, int] = {}  # bytes by name
        self._child = -1  # the child that has them

    def run(self, kernel: Kernel) -> Outcome:
        """Executes ``kernel`` if it may be; see `alone.child.kernels` for the outputs of the outcome."""
        reason = refusal(kernel)
        if reason is not None:
            return _not_replayable(reason)
        shapes = shapes_of(kernel)
        wrong = None if shapes is None else shapes.wrong_values(kernel.by_name())
        if wrong is not None:
            return _not_replayable(wrong)
        try:
            self._keep({name for argument in kernel.given for name in _names(argument)})
        except MissingWeights as error:
            return _not_replayable(str(error)[:1].lower() + str(error)[1:].rstrip("."))
        return self._sandbox.run(KERNEL, self._request(kernel))

    def _keep(self, names: set[str]) -> None:
        """Makes sure that the child has these constants."""
        if self._child != self._sandbox.starts:
            self._kept, self._child = {}, self._sandbox.starts
        for name in sorted(names - set(self._kept)):
            constant = self._constants.load(name)
            size = nbytes(constant.dtype, constant.shape)
            if sum(self._kept.values()) + size > KEPT:
                self._sandbox.run(KERNEL, {"forget": True})
                self._kept = {}
                return self._keep(names)
            self._sandbox.run(KERNEL, {"keep": {name: constant}})
            self._kept[name] = size
        return None

    def _request(self, kernel: Kernel) -> dict[str, Any]:
        now = changed(kernel)
        given = kernel.by_name()
        return {
            "name": now.now,
            "schema": kernel.schema,
            "renamed": dict(now.arguments),
            # One that was not given had its default.
            "without": [n for n, v in now.without.items() if n not in given or repr(given[n]) == repr(v)],
            "arguments": [plain_argument(a) for a in kernel.arguments],
            "keywords": {name: plain_argument(a) for name, a in kernel.keywords.items()},
            "want": sorted(kernel.written),
            "reference": self.reference and why_no_reference(kernel) is None,
        }


def is_custom(kernel: Kernel) -> bool:
    """Whether executing ``kernel`` needs libraries other than PyTorch."""
    return not kernel.name.startswith("aten.") and refusal(kernel) is None


def why_no_reference(kernel: Kernel) -> str | None:
    """Why the same call on float64 inputs is not a reference for ``kernel``; None if it is."""
    if not kernel.name.startswith("aten."):
        return "it is not a PyTorch kernel"
    if draws(kernel):
        return "it draws random numbers"
    results = (*kernel.outputs, *kernel.written.values())
    return None if any(map(_is_float, results)) else "it returns no floating-point numbers"


def plain_argument(argument: Argument) -> Any:
    """An argument as `alone.child.kernels` takes it."""
    if isinstance(argument, Value):
        return _tensor(argument)
    if isinstance(argument, Named):
        return {
            "constant": argument.name, "dtype": argument.dtype, "shape": list(argument.shape),
            "strides": list(argument.strides), "start": argument.start,
        }  # fmt: skip
    if isinstance(argument, Opaque):
        state = None if argument.state is None else _tensor(argument.state)
        return {"kind": argument.kind, "text": argument.text, "state": state}
    if isinstance(argument, tuple):
        return [plain_argument(item) for item in argument]
    if isinstance(argument, complex):
        return {"complex": [argument.real, argument.imag]}
    assert not isinstance(argument, LeftOut)  # refused
    return argument


def _tensor(value: Value) -> TensorBytes:
    return TensorBytes(value.dtype, value.shape, value.strides, value.load(), value.storage, value.start)


def _names(argument: Argument) -> set[str]:
    if isinstance(argument, Named):
        return {argument.name}
    return set().union(*map(_names, argument)) if isinstance(argument, tuple) else set()


def _is_float(result: Argument) -> bool:
    if isinstance(result, tuple):
        return any(map(_is_float, result))
    return (
        isinstance(result, Value)
        and result.dtype in ("float16", "bfloat16", "float32")
        and math.prod(result.shape) > 0
    )


def _not_replayable(reason: str) -> Outcome:
    return Outcome("not replayable", f"not replayable: {reason}")
