"""Tensors as a plain safetensors file, and calls as JSON lines, for other tools."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tracereplay.dtypes import DTYPES, nbytes
from tracereplay.errors import UsageError
from tracereplay.storage.atomic import written
from tracereplay.trace.chunk import Bytes
from tracereplay.trace.directory import refuse_live
from tracereplay.trace.select import Chosen

__all__ = [
    "Exported", "export_calls", "export_tensors", "is_exported_calls", "is_exported_tensors", "tensor_name",
    "write_safetensors",
]  # fmt: skip

_NAME = re.compile(r"\d+/.*/\d+/(in|out|written)\d+", re.DOTALL)  # see `tensor_name`
_MOST = 64 << 20  # bytes of a header or a line that is read


def tensor_name(chosen: Chosen) -> str:
    """``step 3`` of ``model.norm``: ``3/model.norm/0/out0`` (the third part numbers the site's calls in the
    step)."""
    return f"{chosen.step}/{chosen.call.site}/{chosen.call.number}/{chosen.name}"


class Exported(NamedTuple):
    """A tensor for a safetensors file; ``load`` gives its elements' bytes, row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], Bytes]


def export_tensors(chosen: Iterable[Chosen], out: Path) -> int:
    """Writes tensors to a safetensors file and returns how many there are; see `write_safetensors`."""
    return write_safetensors([Exported(tensor_name(c), c.value.dtype, c.shape, c.bytes) for c in chosen], out)


def write_safetensors(tensors: Sequence[Exported], out: Path) -> int:
    """Writes a safetensors file and returns how many tensors there are; one is in memory at a time.

    A dtype that safetensors does not know is written as bytes, with its name in the file's metadata.

    Raises:
        UsageError: the file cannot be written, or a recording is being written to it.
    """
    refuse_live(out)
    # The widest first, as safetensors itself does: so each lies aligned.
    tensors = sorted(tensors, key=lambda one: -DTYPES[one.dtype].word)
    header: dict[str, Any] = {"__metadata__": {}}
    end = 0
    for one in tensors:
        known, shape = DTYPES[one.dtype], list(one.shape)
        begin, end = end, end + nbytes(one.dtype, one.shape)
        if known.safetensors is None:
            header["__metadata__"][one.name] = one.dtype
            shape = [*shape, known.itemsize]
        header[one.name] = {"dtype": known.safetensors or "U8", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    try:
        with written(out) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for one in tensors:
                file.write(one.load())
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}.") from error
    return len(tensors)


def export_calls(chosen: Iterable[Chosen], out: Path) -> int:
    """Writes a line of JSON for each tensor of each call, without its values, and returns how many there are.

    Raises:
        UsageError: the file cannot be written, or a recording is being written to it.
    """
    count = 0
    refuse_live(out)
    try:
        with written(out) as file:
            for one in chosen:
                file.write(f"{json.dumps(_line(one))}\n".encode())
                count += 1
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}.") from error
    return count


def is_exported_tensors(path: Path) -> bool:
    """Whether `export_tensors` wrote the file: each of its tensors is named as it names them."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = _object(file.read(length)) if length <= _MOST else {}
    names = set(header) - {"__metadata__"}
    return "__metadata__" in header and all(map(_NAME.fullmatch, names))


def is_exported_calls(path: Path) -> bool:
    """Whether `export_calls` wrote the file, by its first line."""
    with path.open("rb") as file:
        first = _object(file.readline(_MOST))
    return {"step", "site", "operator", "call", "tensor", "key", "rows"} <= set(first)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _line(one: Chosen) -> dict[str, Any]:
    rows = one.rows if one.picked is None else one.rows[one.picked]
    value = one.value
    return {
        "step": one.step, "site": one.call.site, "operator": one.site.operator, "call": one.call.number,
        "tensor": one.name, "key": tensor_name(one), "dtype": value.dtype, "shape": list(value.shape),
        "strides": list(value.strides), "storage": value.storage, "start": value.start, "version": value.version,
        "rows": rows.tolist(),
    }  # fmt: skip
