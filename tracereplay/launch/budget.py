"""How a recording that goes on for days is cut into traces, and how much of the disk these may take."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tracereplay.errors import UsageError

__all__ = ["Budget", "budget_of", "bytes_of", "seconds_of"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {unit: 1 << 10 * power for power, unit in enumerate(_UNITS)}
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
SMALLEST = 1 << 20  # bytes of a trace, of what is kept and of what stays free: less is a unit that was forgotten
SHORTEST = 1.0  # seconds


@dataclass(frozen=True)
class Budget:
    """None: no limit.

    Args:
        bytes: after which the next trace begins.
        seconds: after which the next trace begins.
        keep: so many finished traces.
        keep_bytes: so many bytes of finished traces.
        leave_free: so many bytes of the disk stay free.
        resume: whether a recording that ended for want of room begins another trace when there is room.
    """

    bytes: int | None = None
    seconds: float | None = None
    keep: int | None = None
    keep_bytes: int | None = None
    leave_free: int | None = None
    resume: bool = False


def bytes_of(text: str, option: str) -> int:
    """The bytes of ``256MB``, ``1GiB`` or a bare number.

    Raises:
        UsageError: it is no amount, or too small to be meant.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"{option} {text} is no amount of bytes; give one as in 256MB, 1GB or 1GiB.")
    units = _BINARY if found[3] else _UNITS
    number = int(float(found[1]) * units[found[2].upper()])
    if number < SMALLEST:
        raise UsageError(f"{option} {text} is too little for a trace; give 1MiB or more, as in 256MB or 1GB.")
    return number


def seconds_of(text: str, option: str) -> float | None:
    """The seconds of ``1h``, ``30m`` or ``90s``; None if it is no time.

    Raises:
        UsageError: it is too short.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)", text.strip())
    if found is None:
        return None
    seconds = float(found[1]) * _SECONDS[found[2]]
    if seconds < SHORTEST:
        raise UsageError(f"{option} {text} is too short; give a second or more, as in 90s, 30m or 1h.")
    return seconds


def budget_of(rotate: str | None, keep: str | None, leave_free: str | None, *, resume: bool) -> Budget:
    """The budget of the command line's options.

    Raises:
        UsageError: one of them cannot be followed.
    """
    seconds = seconds_of(rotate, "--rotate") if rotate is not None else None
    size = bytes_of(rotate, "--rotate") if rotate is not None and seconds is None else None
    count = int(keep) if keep is not None and keep.strip().isdigit() else None
    if count == 0:
        raise UsageError("--keep 0 would keep no trace; give 1 or more, or an amount of bytes as in 50GB.")
    most = bytes_of(keep, "--keep") if keep is not None and count is None else None
    if most is not None and size is not None and most < size:
        raise UsageError(f"--keep {keep} is less than one trace of --rotate {rotate}; keep at least as much.")
    free = bytes_of(leave_free, "--leave-free") if leave_free is not None else None
    return Budget(size, seconds, count, most, free, resume)
