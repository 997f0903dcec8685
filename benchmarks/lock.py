"""A lock on a file: two engines on one machine measure each other."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Holds an exclusive lock on a file, where one is named; waits for it."""
    if path is None:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
