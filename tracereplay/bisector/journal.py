"""Measurements kept on disk, so that an interrupted bisection can be resumed.

    DIR/journal.jsonl     a header, then one line per run: what was changed, and the result
    DIR/candidate.trace   the replay (operators only)

A line is written when its run has ended; an incomplete one is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from tracereplay.bisector.effect import Effect
from tracereplay.errors import UsageError

__all__ = ["Journal", "OfOperators", "OfSettings", "OfVersions", "Subject"]


@dataclass(frozen=True, slots=True)
class OfOperators:
    """A bisection by operators of the engine of that name."""

    engine: str

    def as_dict(self) -> dict[str, Any]:
        return {"engine": self.engine}  # no kind: journals of this one were there before the others'


@dataclass(frozen=True, slots=True)
class OfSettings:
    """A bisection by settings of the engine of that name.

    Args:
        engine: the candidate.
        like: the engine whose settings are used instead of golden's, if any.
    """

    engine: str
    like: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "settings", "engine": self.engine, "like": self.like}


@dataclass(frozen=True, slots=True)
class OfVersions:
    """A bisection by versions of the package of that name."""

    package: str

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "versions", "package": self.package}


Subject: TypeAlias = OfOperators | OfSettings | OfVersions


class Journal:
    """Measured runs, by the names of the changes made in them.

    Args:
        folder: where it is kept; created if missing. None keeps nothing.
        header: what the runs depend on: golden, engine, settings.

    Raises:
        UsageError: the folder contains a different bisection, or cannot be written.
    """

    def __init__(self, folder: Path | None, header: Mapping[str, Any]) -> None:
        self._path = None if folder is None else folder / "journal.jsonl"
        self._runs: dict[tuple[str, ...], Effect | str] = {}
        if self._path is None:
            return
        plain = json.loads(json.dumps(header, default=str))
        if self._path.exists():
            self._read(self._path, plain)
        else:
            self._append(plain)

    def __len__(self) -> int:
        return len(self._runs)

    def find(self, changed: Iterable[str]) -> Effect | str | None:
        """The result of a run, or why it was impossible; None if it was not tried."""
        return self._runs.get(tuple(sorted(changed)))

    def keep(self, changed: Iterable[str], found: Effect | str) -> None:
        """Records a run."""
        key = tuple(sorted(changed))
        self._runs[key] = found
        if isinstance(found, str):
            self._append({"changed": key, "refused": found})
        else:
            values = [repr(v) for v in found.differences]  # repr round-trips, including NaN and infinity
            self._append({"changed": key, "differences": values, "wrong": found.wrong})

    def _read(self, path: Path, header: Mapping[str, Any]) -> None:
        first, *lines = path.read_text(encoding="utf-8").split("\n")
        if _json(first) != header:
            raise UsageError(
                f"{path.parent} contains a bisection of another golden trace, engine or setting; give another "
                "--work directory, or delete it."
            )
        for line in lines:
            run = _json(line)
            if run is None:
                continue
            key = tuple(run["changed"])
            if "refused" in run:
                self._runs[key] = str(run["refused"])
            else:
                self._runs[key] = Effect(tuple(map(float, run["differences"])), int(run["wrong"]))
        if lines and lines[-1]:
            self._append_text("\n")  # the last line was cut off

    def _append(self, line: Mapping[str, Any]) -> None:
        self._append_text(json.dumps(line) + "\n")

    def _append_text(self, text: str) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UsageError(f"{self._path} cannot be written: {error.strerror}.") from error


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
