"""The reproducer of one recorded kernel: its arguments as Python, laid out in memory as they lay."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from tracereplay.dtypes import itemsize
from tracereplay.errors import UsageError
from tracereplay.event import Argument, Kernel, Named, Opaque, Value
from tracereplay.launch.isolated.constants import Constants
from tracereplay.launch.isolated.permitted import UNKNOWN, refusal
from tracereplay.report.repro.folder import Reproducer, engine_line, fill
from tracereplay.report.words import clean
from tracereplay.schemas import schema_arguments
from tracereplay.trace import TensorBytes, Trace

__all__ = ["reproduce_kernel"]

_NAME = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*\.[A-Za-z_]\w*", re.ASCII)


def reproduce_kernel(trace: Trace, step: int, kernel: Kernel, constants: Constants) -> Reproducer:
    """What makes the call of ``kernel`` again.

    Args:
        trace: a recording.
        step: in which it ran.
        kernel: the call.
        constants: what it takes by name.

    Raises:
        UsageError: it cannot be made again: an argument was not recorded, or belongs to the recording process.
        MissingWeights: see `Constants.load`.
    """
    reason = refusal(kernel)
    if (reason is not None and reason != UNKNOWN) or not _NAME.fullmatch(kernel.name):
        raise UsageError(
            f"{clean(kernel.name)} cannot be reproduced: {reason or 'its name is none of an operator'}."
        )
    script = _Script(kernel, constants)
    compared, expected = _expected(kernel, script)
    if not expected:
        raise UsageError(f"{kernel.name} cannot be reproduced: nothing that it gave was recorded to compare with.")
    site = trace.sites("record").get(kernel.site)
    operator = site.operator if site else "operator"
    text = fill(
        "kernel.j2",
        [*script.inputs.values(), *expected.values()],
        title=_quoted(f"{kernel.name} in {operator} at {kernel.site}, step {step} of a recording."),
        engine=_quoted(engine_line(trace)),
        notes=[_WARNING] if reason == UNKNOWN else [],
        vllm=not kernel.name.startswith("aten."),
        operator=kernel.name,
        arguments=script.lines,
        call=script.call,
        compared=compared,
    )
    return Reproducer(text, script.inputs, expected)


_WARNING = "This operator is not among those that are known to be safe: read what it does before running this.\n"


def _quoted(text: str) -> str:
    """``text`` as it may stand in the script's docstring, whoever wrote it."""
    return clean(text).replace("\\", "/").replace('"', "'")


def _expected(kernel: Kernel, script: _Script) -> tuple[list[tuple[str, str]], dict[str, TensorBytes]]:
    """Names and expressions of what is compared, and the recorded values."""
    compared: list[tuple[str, str]] = []
    expected: dict[str, TensorBytes] = {}
    for expression, value in _outputs(kernel.outputs, "results"):
        name = f"output {len(compared)}"
        compared.append((name, expression))
        expected[name] = _plain(value)
    for number, value in sorted(kernel.written.items()):
        name = f"{script.tensors[number]} after the call"
        compared.append((name, script.tensors[number]))
        expected[name] = _plain(value)
    return compared, expected


def _outputs(results: Sequence[Argument], expression: str) -> Iterator[tuple[str, Value]]:
    for index, result in enumerate(results):
        if isinstance(result, Value):
            yield f"{expression}[{index}]", result
        elif isinstance(result, tuple):
            yield from _outputs(result, f"{expression}[{index}]")


def _plain(value: Value) -> TensorBytes:
    return TensorBytes(value.dtype, value.shape, _row_major(value.shape), value.load())


class _Script:
    """The script's lines for one call.

    Attributes:
        lines: statements that make the arguments.
        call: the arguments as they are passed.
        inputs: tensors of the inputs' file, by name.
        tensors: names of the tensors among the arguments, in order.
    """

    def __init__(self, kernel: Kernel, constants: Constants) -> None:
        self.lines: list[str] = []
        self.call: list[str] = []
        self.inputs: dict[str, TensorBytes] = {}
        self.tensors: list[str] = []
        self._constants = constants
        self._memories = _memories([*kernel.arguments, *kernel.keywords.values()])
        names = [_variable(a.name) for a in schema_arguments(kernel.schema)]
        for index, argument in enumerate(kernel.arguments):
            self.call.append(self._argument(names[index] if index < len(names) else f"argument_{index}", argument))
        for name, argument in kernel.keywords.items():
            if name == "generator" and "generator" not in names:
                self.lines.append(f"torch.default_generator.set_state({self._state(name, argument)})")
                continue
            if not name.isidentifier():
                raise UsageError(f"{kernel.name} cannot be reproduced: an argument is named {clean(name)!r}.")
            self.call.append(f"{name}={self._argument(_variable(name), argument)}")

    def _argument(self, name: str, argument: Argument) -> str:
        if isinstance(argument, Value):
            return self._tensor(name, self._place(name, argument))
        if isinstance(argument, Named):
            return self._tensor(name, self._named(argument))
        if isinstance(argument, Opaque):
            return self._opaque(name, argument)
        if isinstance(argument, tuple):
            return f"[{', '.join(self._argument(f'{name}_{i}', item) for i, item in enumerate(argument))}]"
        if isinstance(argument, float) and not math.isfinite(argument):
            return f'float("{argument}")'
        return repr(argument)

    def _tensor(self, name: str, expression: str) -> str:
        while name in self.tensors:
            name += "_"
        self.lines.append(f"{name} = {expression}")
        self.tensors.append(name)
        return name

    def _place(self, name: str, value: Value) -> str:
        memory = self._memories.get((value.storage, value.dtype))
        if memory is None:
            self.inputs[name] = _plain(value)
            return f'inputs["{name}"]'
        key = f"memory {value.storage} of {value.dtype}"
        self.inputs[key] = memory.tensor()
        return f'inputs["{key}"].as_strided({value.shape}, {value.strides}, {value.start - memory.start})'

    def _named(self, named: Named) -> str:
        key = clean(named.name).replace('"', "'")
        constant = self._constants.load(named.name)
        self.inputs[key] = TensorBytes(constant.dtype, constant.shape, constant.strides, constant.data)
        whole = f'inputs["{key}"]'
        if (named.shape, named.strides, named.start) == (constant.shape, constant.strides, 0):
            return whole
        return f"{whole}.as_strided({named.shape}, {named.strides}, {named.start})"

    def _opaque(self, name: str, opaque: Opaque) -> str:
        if opaque.kind == "Generator":
            self.lines.append(f"{name} = torch.Generator()")
            self.lines.append(f"{name}.set_state({self._state(name, opaque)})")
            return name
        if not opaque.text.replace(":", "").isidentifier():
            raise UsageError(
                f"An argument is the {opaque.kind} {clean(opaque.text)!r}, which torch does not have."
            )
        return f'torch.device("{opaque.text}")' if opaque.kind == "device" else f"torch.{opaque.text}"

    def _state(self, name: str, generator: Argument) -> str:
        assert isinstance(generator, Opaque)
        assert generator.state is not None
        self.inputs[f"state of {name}"] = _plain(generator.state)
        return f'inputs["state of {name}"]'


class _Memory:
    """Memory in which several tensors of one dtype lie, or one with gaps, from the first element to the last."""

    def __init__(self, values: Sequence[Value]) -> None:
        self.start = min(value.start for value in values)
        self._values = values

    def tensor(self) -> TensorBytes:
        """Its elements, zero where none was recorded."""
        dtype = self._values[0].dtype
        size = max(value.start + _extent(value) for value in self._values) - self.start
        words = np.zeros(size, np.dtype((np.void, itemsize(dtype))))
        for value in self._values:
            if 0 not in value.shape:
                strides = [stride * words.itemsize for stride in value.strides]
                there = np.lib.stride_tricks.as_strided(words[value.start - self.start :], value.shape, strides)
                there[...] = np.frombuffer(value.load(), words.dtype).reshape(value.shape)
        return TensorBytes(dtype, (size,), (1,), words.tobytes())


def _memories(arguments: Sequence[Argument]) -> dict[tuple[int, str], _Memory]:
    """Of the tensors among the arguments those that share memory, or are not row-major."""
    groups: dict[tuple[int, str], list[Value]] = {}
    for value in _values(arguments):
        groups.setdefault((value.storage, value.dtype), []).append(value)
    return {
        key: _Memory(values)
        for key, values in groups.items()
        if key[0] >= 0 and (len(values) > 1 or values[0].strides != _row_major(values[0].shape))
    }


def _values(arguments: Sequence[Argument]) -> Iterator[Value]:
    for argument in arguments:
        if isinstance(argument, Value):
            yield argument
        elif isinstance(argument, tuple):
            yield from _values(argument)


def _extent(value: Value) -> int:
    """Elements from its first to its last."""
    if 0 in value.shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(value.shape, value.strides, strict=True))


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _variable(name: str) -> str:
    return f"{name}_" if keyword.iskeyword(name) or name in ("inputs", "expected", "torch", "result") else name
