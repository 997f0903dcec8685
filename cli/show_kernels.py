"""``tracereplay show TRACE SITE --kernels``: the kernels that ran inside an operator's calls."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracereplay.errors import UsageError
from tracereplay.event import Argument, Kernel, LeftOut, Named, Opaque, Value, is_triton
from tracereplay.report.clean import clean
from tracereplay.report.words import short_kernel
from tracereplay.schemas import schema_arguments
from tracereplay.trace import Trace
from tracereplay.trace.select import matching_sites, steps_of

__all__ = ["show_kernels"]

LIST = 6  # parts of a list that are shown


def show_kernels(
    trace: Trace, pass_name: str, site: str, console: Console, *, step: int | None, first_steps: int | None
) -> None:
    """Prints a table for each step and site: the kernels in order, with their inputs, outputs and writes.

    ``@3`` after a tensor identifies the memory it was in: equal numbers mean the same memory. Below a table stands
    in which module each of its Triton kernels is.

    Raises:
        UsageError: there is no such site or step, or no kernel was recorded.
    """
    rank = trace.ranks(pass_name)[0]
    names = [found.name for found in matching_sites(trace, pass_name, site, rank)]
    shown = False
    for found in steps_of(trace, pass_name, rank=rank, step=step, first_steps=first_steps):
        for name in names:
            kernels = [(place, k) for place, k in enumerate(found.kernels) if k.site == name]
            if kernels:
                console.print(_table(f"{name}, step {found.number} of {pass_name}", kernels))
                for line in _modules(kernels):
                    console.print(Text(clean(line), style="dim"))
                console.print()
                shown = True
    if shown:
        console.print(
            Text("@N identifies the memory a tensor was in: equal numbers mean the same memory", style="dim")
        )
    else:
        raise UsageError(f"{trace.path} has no kernels of {site!r} there; record it with --level kernel.")


def _table(title: str, kernels: list[tuple[int, Kernel]]) -> Table:
    table = Table("kernel", "inputs", "outputs", box=None, pad_edge=False, header_style="dim")
    table.title, table.title_justify = Text(clean(title)), "left"
    depths: dict[int, int] = {}
    for place, kernel in kernels:
        depths[place] = depths.get(kernel.parent, -1) + 1
        indent = "  " * depths[place]
        cells = f"{indent}{short_kernel(kernel.name)}", ", ".join(_taken(kernel)), ", ".join(_given(kernel))
        table.add_row(*(Text(clean(words)) for words in cells))
    return table


def _modules(kernels: list[tuple[int, Kernel]]) -> Iterator[str]:
    declared = {k.name: k.schema.partition("(")[0] for _, k in kernels if is_triton(k) and k.schema}
    yield from (f"{name} is {function}" for name, function in declared.items())


def _taken(kernel: Kernel) -> Iterator[str]:
    names = _argument_names(kernel)
    for i, argument in enumerate(kernel.arguments):
        yield f"{names[i]} {_words(argument)}" if i < len(names) else _words(argument)
    for name, argument in kernel.keywords.items():
        yield f"{name}={_words(argument)}"


def _given(kernel: Kernel) -> Iterator[str]:
    if kernel.failed:
        yield f"raised {kernel.failed}" if kernel.arguments or kernel.keywords else kernel.failed
    yield from (_words(output) for output in kernel.outputs if output is not None)
    names = kernel.tensor_names()
    for number, value in sorted(kernel.written.items()):
        undeclared = ", undeclared" if number in kernel.undeclared else ""
        name = names[number] if number < len(names) else f"tensor {number}"
        yield f"{name} written{undeclared}: {_words(value)}"


def _argument_names(kernel: Kernel) -> list[str]:
    try:
        return [argument.name for argument in schema_arguments(kernel.schema)]
    except ValueError:
        return []


def _words(argument: Argument) -> str:
    if isinstance(argument, Value):
        memory = f" @{argument.storage}" if argument.storage >= 0 else ""
        return f"{argument.dtype}{list(argument.shape)}{memory}"
    if isinstance(argument, Named):
        return f"{argument.dtype}{list(argument.shape)} of {argument.name}"
    if isinstance(argument, LeftOut):
        return f"{argument.dtype}{list(argument.shape)}, {argument.reason}, not recorded"
    if isinstance(argument, Opaque):
        return argument.text or argument.kind if argument.kind != "Generator" else f"generator on {argument.text}"
    if isinstance(argument, tuple):
        shown = ", ".join(map(_words, argument[:LIST])) + (", ..." if len(argument) > LIST else "")
        return f"[{shown}]"
    return repr(argument)
