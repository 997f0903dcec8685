"""A front end's file of requests (`trace.requests`), opened and written beside it (`aside`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracereplay.errors import TracereplayError
from tracereplay.recorder.aside import Aside
from tracereplay.trace.requests import RequestFile

__all__ = ["RequestNotes"]


class RequestNotes:
    """Is made with the first record; where that fails, with the next.

    Args:
        directory, meta, recipients: see `RequestFile`.
        aside: writes it.
        failed: called for each record that could not be written, maybe in another thread.
    """

    def __init__(
        self, directory: Path, meta: Mapping[str, Any], recipients: Sequence[str], aside: Aside,
        failed: Callable[[], None],
    ) -> None:  # fmt: skip
        self._make: Callable[[], RequestFile] = lambda: RequestFile(directory, meta, recipients)
        self._aside, self._failed = aside, failed
        self._file: RequestFile | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a record."""
        if not self._aside.do(lambda: self._add(record)):
            self._failed()

    def close(self) -> None:
        self._aside.do(self._close)

    def _add(self, record: Mapping[str, Any]) -> None:
        try:
            if self._file is None:
                self._file = self._make()
            self._file.add(record)
        except (OSError, TracereplayError):
            self._failed()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
