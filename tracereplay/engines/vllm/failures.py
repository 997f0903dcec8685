"""Why an engine failed: what one of its other processes printed before ours was told that it is dead.

vLLM runs its core and its workers in processes of their own. When one fails, the process that we talk to gets
``EngineDeadError`` or "Engine core initialization failed", and the error is in the log, with a prefix::

    (Worker pid=247) ERROR 11-26 22:08:42 [multiproc_executor.py:1063] Traceback (most recent call last):
    (Worker pid=247) ERROR 11-26 22:08:42 [multiproc_executor.py:1063]   File ...
    (Worker pid=247) ERROR 11-26 22:08:42 [multiproc_executor.py:1063] RuntimeError: Unexpected head dim size, 32
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tracereplay.engines.family import RootCause

__all__ = ["root_cause"]

# The errors by which a process of vLLM's says that another one failed.
_ANOTHER_FAILED = re.compile(
    r"EngineDeadError|Engine core initialization failed|EngineCore encountered|"
    r"WorkerProc initialization failed|stack trace|root cause",
    re.IGNORECASE,
)
_LINE = re.compile(
    r"\((?P<process>[\w.-]+) pid=(?P<pid>\d+)\) (?:(?P<level>[A-Z]+) \S+ \S+ \[[^\]]*\] ?)?(?P<text>.*)"
)
_BEGINS = "Traceback (most recent call last):"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def root_cause(error: str, log: Iterable[str]) -> RootCause | None:
    """The first error that another process printed; None if ``error`` is not about another process, or none did.

    Args:
        error: what the process that we talk to raised.
        log: the lines that the engine printed.
    """
    if not _ANOTHER_FAILED.search(error):
        return None
    return next((found for found in _tracebacks(log) if not _ANOTHER_FAILED.search(found.error)), None)


def _tracebacks(log: Iterable[str]) -> Iterator[RootCause]:
    """The tracebacks of prefixed lines, as they end; those logged as warnings were survived."""
    begun: dict[tuple[str, str], list[str]] = {}
    for line in log:
        found = _LINE.fullmatch(_COLOURS.sub("", line).rstrip())
        if found is None or found["level"] not in (None, "ERROR", "CRITICAL"):
            continue
        process, text = (found["process"], found["pid"]), found["text"]
        if text.endswith(_BEGINS):
            begun[process] = [_BEGINS]
        elif process in begun:
            begun[process].append(text)
            if text and not text[0].isspace():
                yield RootCause(error=text, process=process[0], lines=tuple(begun.pop(process)))
