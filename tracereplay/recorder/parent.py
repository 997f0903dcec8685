"""A recording's parent, as a ring speaks to it: told of triggers at `control.sock`, and answering in its time.

tell ─▶ control.sock ─▶ an order to all ranks (`orders`), and an answer
 └── no answer, or a refusal ─▶ `unheard`: whoever looks for a trace shall still find one
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tracereplay.recorder.triggers import Fired

__all__ = ["CONTROL", "Parent", "Told"]

CONTROL = "control.sock"
PATIENCE = 1.0  # seconds that a parent has to take a sentence
ANSWER = 0.1  # seconds for which its answer is waited for, while the engine has arenas left
LATE = 5.0  # seconds that it has to answer


class Told(NamedTuple):
    """A trigger of which the parent was told, over a connection at which it answers until then."""

    to: socket.socket
    fired: Fired
    said: Mapping[str, Any]
    after: int
    until: float


class Parent:
    """See the module.

    Args:
        folder: of the recording.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CONTROL
        self._asked: list[Told] = []  # who has not answered yet

    @property
    def owes(self) -> bool:
        """Whether it has not answered yet."""
        return bool(self._asked)

    def tell(self, fired: Fired, said: Mapping[str, Any], after: int) -> bool:
        """Whether a parent listens, who orders what is to be made or not; it may answer later."""
        if not self._path.exists():
            return False
        to = socket.socket(socket.AF_UNIX)
        try:
            to.settimeout(PATIENCE)
            to.connect(os.fspath(self._path))
            to.sendall(json.dumps({"do": "triggered", **said, "after": after}).encode() + b"\n")
        except OSError:
            to.close()
            return False  # it died: whoever looks for a trace still finds one
        self._asked.append(Told(to, fired, said, after, time.monotonic() + LATE))
        return True

    def wait(self) -> None:
        """Waits for the last answer, for a moment."""
        select.select([self._asked[-1].to], [], [], ANSWER)

    def unheard(self, last: bool) -> list[Told]:
        """Reads what it has answered; returns what it died over, or would be too late for.

        Args:
            last: whether nobody reads later.
        """
        found = []
        for asked in [*self._asked]:
            if not select.select([asked.to], [], [], 0)[0]:
                if time.monotonic() < asked.until:
                    continue
                good = not last  # it is there, and very busy: its order comes when it comes
            else:
                try:
                    good = "ok" in json.loads(asked.to.makefile("rb").readline(1 << 20))
                except (OSError, ValueError, TypeError):
                    good = False
            self._asked.remove(asked)
            asked.to.close()
            if not good:
                found.append(asked)
        return found
