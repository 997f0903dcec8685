"""Files that are written atomically: an existing file stays until the new one is complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tracereplay.errors import UsageError

__all__ = ["beside", "local_path", "written"]


def local_path(path: str | os.PathLike[str]) -> Path:
    """A path to write to.

    Raises:
        UsageError: it is a URL.
    """
    if "://" in os.fspath(path):
        raise UsageError(f"Cannot write to {path}; give a local path.")
    return Path(path)


def beside(path: Path, what: str = "partial") -> Path:
    """A free name in the same directory, such as ``.NAME.partial-1f0c9a3e``."""
    return path.parent / f".{path.name[:50]}.{what}-{secrets.token_hex(4)}"


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which replaces ``path`` when the context ends without an error.

    A link stays a link. A device or a pipe is written as it is.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device
        return
    target = Path(os.path.realpath(path))
    partial = beside(target)
    try:
        with partial.open("xb") as file:
            yield file
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
