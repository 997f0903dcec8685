"""What commands say on stderr: sentences, and how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from tracereplay.report.clean import clean

__all__ = ["progress", "stderr", "tell"]

stderr = Console(stderr=True, highlight=False)


@contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that reports progress; each line shows the seconds since the start."""
    begun = time.monotonic()
    with stderr.status(title) as status:

        def report(line: str) -> None:
            seconds = time.monotonic() - begun
            stderr.print(Text(f"{seconds:5.0f} s  {line}", style="dim"), soft_wrap=True)
            status.update(Text(line))

        yield report


def tell(sentence: str) -> None:
    """Prints a sentence."""
    stderr.print(Text(clean(sentence)), soft_wrap=True)
