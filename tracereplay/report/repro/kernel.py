"""The reproducer of one recorded kernel: its arguments as Python, laid out in memory as they lay."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterator, Sequence

from tracereplay.errors import UsageError
from tracereplay.event import Argument, Kernel, Named, Opaque, Value
from tracereplay.launch.isolated.constants import Constants
from tracereplay.launch.isolated.permitted import UNKNOWN, refusal
from tracereplay.report.repro.folder import Reproducer, engine_line, fill, quoted
from tracereplay.report.repro.memory import Memories, plain
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
        title=quoted(f"{kernel.name} in {operator} at {kernel.site}, step {step} of a recording."),
        engine=quoted(engine_line(trace)),
        notes=[_WARNING] if reason == UNKNOWN else [],
        vllm=not kernel.name.startswith("aten."),
        operator=kernel.name,
        arguments=script.lines,
        call=script.call,
        compared=compared,
    )
    return Reproducer(text, script.inputs, expected)


_WARNING = "This operator is not among those that are known to be safe: read what it does before running this.\n"


def _expected(kernel: Kernel, script: _Script) -> tuple[list[tuple[str, str]], dict[str, TensorBytes]]:
    """Names and expressions of what is compared, and the recorded values."""
    compared: list[tuple[str, str]] = []
    expected: dict[str, TensorBytes] = {}
    for expression, value in _outputs(kernel.outputs, "results"):
        name = f"output {len(compared)}"
        compared.append((name, expression))
        expected[name] = plain(value)
    for number, value in sorted(kernel.written.items()):
        name = f"{script.tensors[number]} after the call"
        compared.append((name, script.tensors[number]))
        expected[name] = plain(value)
    return compared, expected


def _outputs(results: Sequence[Argument], expression: str) -> Iterator[tuple[str, Value]]:
    for index, result in enumerate(results):
        if isinstance(result, Value):
            yield f"{expression}[{index}]", result
        elif isinstance(result, tuple):
            yield from _outputs(result, f"{expression}[{index}]")


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
        self._memories = Memories(kernel.given)
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
            return self._tensor(name, self._memories.place(name, argument, self.inputs))
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
        self.inputs[f"state of {name}"] = plain(generator.state)
        return f'inputs["state of {name}"]'


def _variable(name: str) -> str:
    return f"{name}_" if keyword.iskeyword(name) or name in ("inputs", "expected", "torch", "result") else name
