"""The reproducer of one recorded kernel: its arguments as Python, with their recorded memory layout."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence

from tracereplay.alone.constants import Constants
from tracereplay.alone.permitted import UNKNOWN, refusal
from tracereplay.dtypes import DTYPES
from tracereplay.engines.known import family_of
from tracereplay.errors import UnsafeRequest, UsageError
from tracereplay.event import Argument, Kernel, Named, Opaque, Value
from tracereplay.passes import RECORD
from tracereplay.report.clean import clean
from tracereplay.report.repro.folder import Reproducer, engine_line, fill, quoted
from tracereplay.report.repro.memory import Memories, plain
from tracereplay.schemas import schema_arguments
from tracereplay.trace import TensorBytes, Trace

__all__ = ["reproduce_kernel"]

_NAME = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*\.[A-Za-z_]\w*", re.ASCII)
_KEYWORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_DEVICE = re.compile(r"(cpu|cuda|meta)(:[0-9]{1,3})?", re.ASCII)
# What torch has of each kind, so that a trace's text is looked up and not made a name.
_CONSTANTS: Mapping[str, Container[str]] = {
    "dtype": DTYPES,
    "layout": ("strided",),
    "memory_format": ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d"),
}


def reproduce_kernel(trace: Trace, step: int, kernel: Kernel, constants: Constants) -> Reproducer:
    """A reproducer of the call of ``kernel``.

    Args:
        trace: a recording.
        step: the step in which it ran.
        kernel: the call.
        constants: the tensors it takes by name.

    Raises:
        UnsafeRequest: the kernel is not known to be safe.
        UsageError: it cannot be reproduced: an argument was not recorded, or belongs to the recording process.
        MissingWeights: see `Constants.load`.
    """
    reason = refusal(kernel)
    if reason not in (None, UNKNOWN):
        raise UsageError(f"{clean(kernel.name)} cannot be reproduced: {reason}.")
    if reason == UNKNOWN or not _NAME.fullmatch(kernel.name):
        raise UnsafeRequest(
            f"{clean(kernel.name)[:80]} cannot be reproduced: it is not among the kernels known to be safe, and a "
            "script would call whatever has that name."
        )
    script = _Script(kernel, constants)
    compared, expected = _expected(kernel, script)
    if not expected:
        raise UsageError(f"{kernel.name} cannot be reproduced: none of its results was recorded to compare with.")
    site = trace.sites(RECORD).get(kernel.site)
    operator = site.operator if site else "operator"
    family = family_of(trace.run.engine)
    custom = not kernel.name.startswith("aten.")
    libraries = family.alone.libraries if custom and family.alone is not None else ()
    text = fill(
        "kernel.j2",
        str(__package__),
        [*script.inputs.values(), *expected.values()],
        title=quoted(f"{kernel.name} in {operator} at {kernel.site}, step {step} of a recording."),
        engine=quoted(engine_line(trace)),
        package=family.package,
        libraries=libraries,
        operator=json.dumps(kernel.name.split(".")),
        lines=script.lines,
        arguments=script.arguments,
        keywords=script.keywords,
        compared=[(json.dumps(name), expression) for name, expression in compared],
    )
    runs = f"PyTorch's operator {kernel.name}" + (f", which {family.package} registers" if libraries else "")
    return Reproducer(text, script.inputs, expected, runs)


def _expected(kernel: Kernel, script: _Script) -> tuple[list[tuple[str, str]], dict[str, TensorBytes]]:
    """Names and expressions of what is compared, and the recorded values."""
    compared: list[tuple[str, str]] = []
    expected: dict[str, TensorBytes] = {}
    for expression, value in _outputs(kernel.outputs, "results"):
        name = f"output {len(compared)}"
        compared.append((name, expression))
        expected[name] = plain(value)
    for number, value in sorted(kernel.written.items()):
        label, expression = script.tensors[number]
        name = f"{label} after the call"
        compared.append((name, expression))
        expected[name] = plain(value)
    return compared, expected


def _outputs(results: Sequence[Argument], expression: str) -> Iterator[tuple[str, Value]]:
    for index, result in enumerate(results):
        if isinstance(result, Value):
            yield f"{expression}[{index}]", result
        elif isinstance(result, tuple):
            yield from _outputs(result, f"{expression}[{index}]")


class _Script:
    """The script's lines for one call. Names in a trace become texts and keys in it, never names.

    Attributes:
        lines: statements before the call.
        arguments: an expression for each.
        keywords: names, quoted, with their expressions.
        inputs: tensors of the inputs' file, by name.
        tensors: of those among the arguments, in order, a label and an expression.
    """

    def __init__(self, kernel: Kernel, constants: Constants) -> None:
        self.lines: list[str] = []
        self.arguments: list[str] = []
        self.keywords: list[tuple[str, str]] = []
        self.inputs: dict[str, TensorBytes] = {}
        self.tensors: list[tuple[str, str]] = []
        self._constants = constants
        self._memories = Memories(kernel.given)
        names = [argument.name for argument in schema_arguments(kernel.schema)]
        for index, argument in enumerate(kernel.arguments):
            name = names[index] if index < len(names) else f"argument {index}"
            self.arguments.append(self._argument(name, f"arguments[{index}]", argument))
        for name, argument in kernel.keywords.items():
            if name == "generator" and "generator" not in names:
                self.lines.append(f"torch.default_generator.set_state({self._state(name, argument)})")
                continue
            if not _KEYWORD.fullmatch(name):
                raise UsageError(f"{kernel.name} cannot be reproduced: an argument is named {clean(name)!r}.")
            key = json.dumps(name)
            self.keywords.append((key, self._argument(name, f"keywords[{key}]", argument)))

    def _argument(self, name: str, place: str, argument: Argument) -> str:
        """An expression for an argument that the call has at ``place``."""
        if isinstance(argument, Value):
            return self._tensor(name, place, self._memories.place(self._free(name), argument, self.inputs))
        if isinstance(argument, Named):
            return self._tensor(name, place, self._named(argument))
        if isinstance(argument, Opaque):
            return self._opaque(name, argument)
        if isinstance(argument, tuple):
            items = (self._argument(f"{name} {i}", f"{place}[{i}]", item) for i, item in enumerate(argument))
            return f"[{', '.join(items)}]"
        if isinstance(argument, float) and not math.isfinite(argument):
            return f'float("{argument}")'
        return repr(argument)

    def _tensor(self, name: str, place: str, expression: str) -> str:
        self.tensors.append((name, place))
        return expression

    def _free(self, name: str) -> str:
        while name in self.inputs:
            name += "_"
        return name

    def _named(self, named: Named) -> str:
        key = clean(named.name)
        constant = self._constants.load(named.name)
        self.inputs[key] = TensorBytes(constant.dtype, constant.shape, constant.strides, constant.data)
        whole = f"inputs[{json.dumps(key)}]"
        if (named.shape, named.strides, named.start) == (constant.shape, constant.strides, 0):
            return whole
        return f"{whole}.as_strided({named.shape}, {named.strides}, {named.start})"

    def _opaque(self, name: str, opaque: Opaque) -> str:
        if opaque.kind == "Generator":
            return f"generator({self._state(name, opaque)})"
        if opaque.kind == "device" and _DEVICE.fullmatch(opaque.text):
            return f'torch.device("{opaque.text}")'
        if opaque.text in _CONSTANTS.get(opaque.kind, ()):
            return f"torch.{opaque.text}"
        raise UsageError(f"An argument is the {opaque.kind} {clean(opaque.text)!r}, which torch does not have.")

    def _state(self, name: str, generator: Argument) -> str:
        assert isinstance(generator, Opaque)
        assert generator.state is not None
        key = f"state of {name}"
        self.inputs[key] = plain(generator.state)
        return f"inputs[{json.dumps(key)}]"
