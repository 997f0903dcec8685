"""How much a flight recorder keeps, as a user says it: ``256MB``, ``500steps``, ``60s``, or several, with commas.

Whoever asks for a recording imports this; so it never imports numpy.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from tracereplay.errors import UsageError

__all__ = ["RingLimits", "memory_of_machine", "read_ring", "read_seconds"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)([KMG]I?|)B", re.ASCII)
_STEPS = re.compile(r"(\d+)STEPS?", re.ASCII)
_TIME = re.compile(r"(\d+(?:\.\d+)?)(S|MIN|H)", re.ASCII)
_SECONDS = {"S": 1, "MIN": 60, "H": 3600}
USUAL = 1 << 30  # bytes where only steps or seconds are asked for, or a quarter of the memory, if that is less
LEAST = 10**6  # bytes; less holds no step of any model
_CGROUP = Path("/sys/fs/cgroup/memory.max")


class RingLimits(NamedTuple):
    """What is kept at most; the least of them counts.

    Args:
        bytes: of all that is kept.
        steps: None: any number.
        seconds: since a step came; None: any time.
    """

    bytes: int
    steps: int | None = None
    seconds: float | None = None

    def share(self, among: int) -> RingLimits:
        """Of one of so many processes that keep a ring."""
        return self._replace(bytes=self.bytes // among)


def read_ring(text: str) -> RingLimits:
    """Reads what a user wrote.

    Raises:
        UsageError: it is no amount, nothing would be kept, or it is more than this machine has.
    """
    most = memory_of_machine()
    given: dict[str, float] = {}
    for word in text.split(","):
        name, amount = _read(word.strip().upper(), text)
        if name in given:
            raise UsageError(f"The ring {text!r} says twice how many {name} it keeps; say it once.")
        if not amount:
            raise UsageError(f"A ring of {word.strip()} keeps nothing; give more, as in 256MB, 500steps or 60s.")
        given[name] = amount
    size = int(given.get("bytes", min(USUAL, most // 4)))
    if size < LEAST:
        raise UsageError(f"A ring of {size} bytes holds no step; give 1MB or more.")
    if size > most:
        raise UsageError(
            f"A ring of {size} bytes is larger than this machine's memory, {most} bytes; give less than that."
        )
    steps = given.get("steps")
    return RingLimits(size, None if steps is None else int(steps), given.get("seconds"))


def _read(word: str, text: str) -> tuple[str, float]:
    if match := _BYTES.fullmatch(word):
        return "bytes", float(match[1]) * _UNITS[match[2]]
    if match := _STEPS.fullmatch(word):
        return "steps", int(match[1])
    if match := _TIME.fullmatch(word):
        return "seconds", float(match[1]) * _SECONDS[match[2]]
    raise UsageError(f"{text!r} is no size of a ring; give bytes, steps or seconds, as in 256MB, 500steps or 60s.")


def read_seconds(text: str) -> float:
    """A time as a user writes it: ``60s``, ``5min``, ``1h``.

    Raises:
        UsageError: it is none.
    """
    match = _TIME.fullmatch(text.strip().upper())
    if match is None:
        raise UsageError(f"{text!r} is no time; give a number with s, min or h, as in 60s.")
    return float(match[1]) * _SECONDS[match[2]]


def memory_of_machine() -> int:
    """Bytes of memory that processes here may have: the machine's, or what a container leaves of it."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        said = _CGROUP.read_text().strip()
    except OSError:
        return found
    return min(found, int(said)) if said.isdigit() else found
