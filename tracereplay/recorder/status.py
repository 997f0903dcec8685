"""What a worker says of its recording while it runs: a page of memory that it fills and the parent reads.

Filling it takes a microsecond a step, and nobody waits for anybody. A reader may see counters of two steps mixed.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

__all__ = ["ENDED", "PAUSED", "RECORDING", "Counters", "Status", "StatusPage", "read_status"]

RECORDING, PAUSED, ENDED = 0, 1, 2
BEGINS = "status-"  # of the name of each rank's page
_SIZE = mmap.PAGESIZE
_WORDS = 256  # where the words begin


@dataclass(slots=True)
class Counters:
    """Since the recording began, over all of its traces.

    Args:
        state: `RECORDING`, `PAUSED` or `ENDED`.
        steps: that the engine made.
        recorded: steps that were handed to the writer.
        dropped: steps that were left out because the writer was behind.
        unrecorded: steps that came while the recording was paused or had ended.
        bytes: that were written.
        step_ns: nanoseconds that recorded steps took, from their beginning to their end.
        hand_ns: of these, those before the model ran and after it, and for handing over.
        tap_ns: of these, those in taps; only some steps are measured, and these stand for all.
        cuts: traces that were begun after the first.
        trace_bytes: of the segment that is being written.
        trace_steps: of the segment that is being written.
    """

    state: int = RECORDING
    steps: int = 0
    recorded: int = 0
    dropped: int = 0
    unrecorded: int = 0
    bytes: int = 0
    step_ns: int = 0
    hand_ns: int = 0
    tap_ns: int = 0
    cuts: int = 0
    trace_bytes: int = 0
    trace_steps: int = 0


_NAMES = [field.name for field in fields(Counters)]
_FORM = struct.Struct(f"<{len(_NAMES)}Q")
_values = attrgetter(*_NAMES)


@dataclass(frozen=True, slots=True)
class Status:
    """A rank's counters and words.

    Args:
        name: of the rank's segments: ``record-rank0``.
        counters: see there.
        words: ``pid``, ``trace`` (the directory it writes to), ``ended`` (why; None), ``error`` (the last; None).
    """

    name: str
    counters: Counters
    words: Mapping[str, Any] = field(default_factory=dict)

    def alive(self) -> bool:
        """Whether its process runs."""
        return os.path.exists(f"/proc/{self.words.get('pid')}")

    @property
    def engine(self) -> str:
        """The rank's engine; see `trace.directory.part_name`."""
        return self.name.rpartition("-rank")[0]


class StatusPage:
    """A worker's page.

    Args:
        room: the directory.
        name: of the rank's segments.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, room: Path, name: str) -> None:
        self.counters = Counters()
        self._words: Mapping[str, Any] = {}
        fd = os.open(room / f"{BEGINS}{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _SIZE)  # a page that is missing later would end the engine by a signal
            self._memory = mmap.mmap(fd, _SIZE)
        finally:
            os.close(fd)

    def show(self) -> None:
        """Shows the counters as they are."""
        _FORM.pack_into(self._memory, 0, *_values(self.counters))

    def say(self, words: Mapping[str, Any]) -> None:
        """Shows words, if they are others than those that stand there."""
        if words == self._words:
            return
        self._words = dict(words)
        data = json.dumps(words).encode()
        if len(data) > _SIZE - _WORDS - 1:
            data = json.dumps({**words, "error": str(words.get("error"))[:500]}).encode()
        self._memory[_WORDS:] = data[: _SIZE - _WORDS].ljust(_SIZE - _WORDS, b"\0")

    def close(self) -> None:
        self._memory.close()


def read_status(room: Path) -> list[Status]:
    """What the ranks of a recording say, by their names."""
    found = []
    for path in sorted(room.glob(f"{BEGINS}*")):
        with contextlib.suppress(OSError, struct.error):
            data = path.read_bytes()
            counters = Counters(*_FORM.unpack_from(data))
            words: dict[str, Any] = {}
            with contextlib.suppress(ValueError):  # read while it was written
                words = json.loads(data[_WORDS:].rstrip(b"\0") or b"{}")
            found.append(Status(path.name.removeprefix(BEGINS), counters, words))
    return found
