"""The standard streams: readers that go away, streams that are closed, and characters that an encoding lacks."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["OutputClosed", "discard_output", "flush_output", "noticing_closed_output", "prepare"]

# What reports are drawn with, for terminals that have only ASCII; anything else is escaped.
_PLAIN = {"…": "...", "→": "->", "±": "+-", "×": "x", "─": "-", "━": "-", "•": "*", "–": "-"}  # noqa: RUF001


class OutputClosed(Exception):
    """Standard output was closed before all was written; no OSError, on which typer has an opinion of its own."""


def prepare() -> None:
    """Makes the standard streams fit to be written to, whatever the program was started with."""
    for number in range(3):
        _occupy(number)
    codecs.register_error("tracereplay", _plainly)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(
            AttributeError, OSError, ValueError
        ):  # a stream that stands for one has no encoding
            stream.reconfigure(errors="tracereplay")  # type: ignore[union-attr]
    # rich would end the program with 1, which means "diverged" here. This also reaches the consoles of typer.
    setattr(Console, "on_broken_pipe", _reader_went_away)  # noqa: B010


def _occupy(number: int) -> None:
    """Opens a standard stream that is closed, lest the next file that is opened take its number.

    Why a pipe without a reader for stdout: writing to it then fails as it does where the reader has gone.
    """
    name = ("stdin", "stdout", "stderr")[number]
    if getattr(sys, name) is not None:
        return
    opened = os.open(os.devnull, os.O_RDWR)
    if name == "stdout":
        os.close(opened)
        reader, opened = os.pipe()
        os.close(reader)
    if opened != number and not _is_open(number):
        os.dup2(opened, number)
        os.close(opened)
        opened = number
    setattr(sys, name, os.fdopen(opened, "r" if number == 0 else "w", encoding="utf-8", closefd=False))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    written = "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in wrong)
    return written, error.end


def _reader_went_away(console: Console) -> None:
    if not console.stderr:
        raise OutputClosed
    # What is told on stderr is no result: the work goes on, unheard.
    console.quiet = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@contextmanager
def noticing_closed_output() -> Iterator[None]:
    """Raises OutputClosed where a write to stdout found no reader."""
    try:
        yield
    except BrokenPipeError:
        if _has_no_reader():
            raise OutputClosed from None
        raise


def flush_output() -> None:
    """Writes what is still held back.

    Raises:
        OutputClosed: nobody reads it.
    """
    with noticing_closed_output():
        sys.stdout.flush()


def discard_output() -> None:
    """Lets what is still held back go nowhere, when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _has_no_reader() -> bool:
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
