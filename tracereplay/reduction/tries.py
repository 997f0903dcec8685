"""Tries: parts that are written and compared, as many as time allows."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tracereplay.bisector.minimal import OutOfBudget
from tracereplay.errors import UsageError
from tracereplay.reduction.part import Part
from tracereplay.reduction.shown import Shown
from tracereplay.reduction.whole import CANDIDATE, GOLDEN, Whole
from tracereplay.trace import open_trace

__all__ = ["Budget", "Make", "Report", "Tries", "in_bytes"]

Report = Callable[[str], None]
Make = Callable[[Part, Path], None]  # writes both traces of a part into a folder


class Budget:
    """How much may be tried.

    Args:
        tries: parts that are written and compared at most.
        seconds: after which none is begun.

    The public attributes: ``used``, tries so far, and ``spent``, whether one more was asked for than there is.
    """

    def __init__(self, tries: int, seconds: float) -> None:
        self.tries, self.seconds = tries, seconds
        self.used, self._began, self.spent = 0, time.monotonic(), False

    def renewed(self) -> Budget:
        """As much again, from now on."""
        return Budget(self.tries, self.seconds)

    def take(self) -> None:
        """Counts a try; raises OutOfBudget if there is none left."""
        if self.used >= self.tries or time.monotonic() - self._began > self.seconds:
            self.spent = True
            raise OutOfBudget
        self.used += 1


class Tries:
    """Asks of parts whether they show the same as the whole; keeps the traces of the last one that did.

    Args:
        whole: the two traces.
        folder: where traces are written; they are gone when the context ends, unless they are moved away.
        make: writes a part.
        budget: how many.
        report: called with a line for each.
    """

    def __init__(self, whole: Whole, folder: Path, make: Make, budget: Budget, report: Report) -> None:
        self._whole, self._make, self._budget, self._report = whole, make, budget, report
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=".reduction-", dir=folder))
        except OSError as error:
            raise UsageError(f"{folder} cannot be written: {error.strerror}.") from error
        self._known: dict[tuple[object, ...], bool] = {}
        self.part: Part | None = None
        self.size = 0  # of golden's part, bytes

    def __enter__(self) -> Tries:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def kept(self) -> Path:
        """The folder of the traces of `part`."""
        return self._folder / "kept"

    def shows(self, part: Part) -> bool:
        """Whether a part shows the same.

        Raises:
            OutOfBudget: it would be one try too many.
        """
        if part.key not in self._known:
            self._budget.take()
            self._known[part.key] = self._try(part)
        return self._known[part.key]

    def _try(self, part: Part) -> bool:
        folder = self._folder / "tried"
        folder.mkdir()
        self._make(part, folder)
        shown: Shown = self._whole.judge(folder, part)[1]
        same = shown == self._whole.shown
        size = _size(folder / GOLDEN)
        found = "shows the same" if same else f"shows something else ({shown.words()})"
        self._report(f"Try {self._budget.used}: {self._whole.words(part)}, {in_bytes(size)}: {found}")
        if same:
            shutil.rmtree(self.kept, ignore_errors=True)
            folder.rename(self.kept)
            self.part, self.size = part, size
        else:
            shutil.rmtree(folder)
        return same

    def put(self, folder: Path) -> None:
        """Moves the traces of `part` to where they go."""
        for name in (GOLDEN, CANDIDATE):
            (self.kept / name).rename(folder / name)


def _size(path: Path) -> int:
    with open_trace(path) as trace:
        return trace.size


def in_bytes(size: int) -> str:
    """For people: ``1.2 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"
