"""A reproducer's folder: a script, and its tensors as safetensors files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from tracereplay.comparator.kernels.compiled import WHY_COMPILED_DIFFERS, compilation_of
from tracereplay.dtypes import DTYPES
from tracereplay.engines.known import family_of
from tracereplay.errors import UsageError
from tracereplay.report.clean import clean
from tracereplay.trace import TensorBytes, Trace
from tracereplay.trace.export import Exported, write_safetensors

__all__ = ["Reproducer", "compiled_caution", "engine_line", "fill", "quoted", "write_reproducer"]


@dataclass(frozen=True)
class Reproducer:
    """What a folder holds.

    Args:
        script: text of ``repro.py``.
        inputs, expected: tensors by name, row-major.
        runs: which part of torch or the engine the script calls, in words.
        caution: why the script may find differences that are not a fault, if so; also quoted in the script.
    """

    script: str
    inputs: Mapping[str, TensorBytes]
    expected: Mapping[str, TensorBytes]
    runs: str
    caution: str | None = None

    @property
    def loads(self) -> str:
        """What the script loads and runs, in a sentence."""
        return f"It loads inputs.safetensors and expected.safetensors beside it, and runs {self.runs}."


def write_reproducer(found: Reproducer, folder: Path) -> None:
    """Writes ``found`` into ``folder``, which is created.

    Raises:
        UsageError: ``folder`` is not empty or cannot be written, or safetensors cannot store a dtype.
    """
    try:
        there = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty; give another directory.")
        with _emptied_again(folder, there):
            for name, tensors in (("inputs", found.inputs), ("expected", found.expected)):
                _write(tensors, folder / f"{name}.safetensors")
            (folder / "repro.py").write_text(found.script, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}.") from error


@contextmanager
def _emptied_again(folder: Path, there: bool) -> Iterator[None]:
    """Removes what was written if not all of it can be; it would be in the way of the next attempt."""
    try:
        yield
    except BaseException:
        for name in ("inputs.safetensors", "expected.safetensors", "repro.py"):
            (folder / name).unlink(missing_ok=True)
        if not there:
            folder.rmdir()
        raise


def _write(tensors: Mapping[str, TensorBytes], path: Path) -> None:
    for name, tensor in tensors.items():
        if DTYPES[tensor.dtype].safetensors is None:
            raise UsageError(f"The tensor {name} is {tensor.dtype}, which a safetensors file cannot store.")
    write_safetensors([Exported(n, t.dtype, t.shape, partial(bytes, t.data)) for n, t in tensors.items()], path)


def fill(template: str, where: str, tensors: Iterable[TensorBytes], **values: Any) -> str:
    """A script from a template.

    Args:
        template: its file's name.
        where: the package that it is in; what it includes is in this one.
        tensors: those that the script reads; ``{{ dtypes }}`` names their dtypes by safetensors' names.
        values: what else the template takes.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in (where, __package__)]),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        autoescape=False,
    )  # fmt: skip
    dtypes = {str(DTYPES[tensor.dtype].safetensors): tensor.dtype for tensor in tensors}
    return environment.get_template(template).render(dtypes=json.dumps(dtypes), **values)


def quoted(text: str) -> str:
    """``text`` as it may stand in a script's docstring, whoever wrote it."""
    return clean(text).replace("\\", "/").replace('"', "'")


def engine_line(trace: Trace) -> str:
    """Versions and device of the engine that was recorded, in words."""
    versions = trace.run.engine_facts("versions")
    named = [
        f"{name} {versions[name]}" for name in (family_of(trace.run.engine).package, "torch") if versions.get(name)
    ]
    mode = compilation_of(trace.run)
    compiled = [] if mode is None else [f"compiled ({mode})"]
    return ", ".join([*named, str(trace.run.engine.get("device") or "an unknown device"), *compiled])


def compiled_caution(trace: Trace) -> str | None:
    """That the recorded operators were compiled and the script's are not; None if they were not."""
    mode = compilation_of(trace.run)
    if mode is None:
        return None
    return (
        f"The recorded engine compiled its model ({mode}), but this script runs the operator eagerly. "
        f"{WHY_COMPILED_DIFFERS}. Differences of that size are not a fault of the operator. To reproduce it bit "
        "for bit, record with enforce_eager=true."
    )
