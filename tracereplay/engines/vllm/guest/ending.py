"""Ends a recording whose engine lives on, as in an actor: whoever asked for it makes a file (`variables.ENDED`).

Why a thread: an engine that idles takes no step before which it could look.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tracereplay.engines.variables import ENDED, RECORD_TO

if TYPE_CHECKING:  # front ends ask only whether it is over, before torch is imported
    from tracereplay.recorder.session import Session

__all__ = ["end_when_told", "is_over", "recorded_to"]

LOOK = 0.25  # seconds between two looks at the file
AGAIN = 0.02  # and at an engine in the middle of a step


def recorded_to() -> Path | None:
    """The trace of a user's own command or program; None: there is none, or it has ended."""
    trace = os.environ.get(RECORD_TO)
    return Path(trace) if trace and not is_over() else None


def is_over() -> bool:
    """Whether the recording has ended."""
    file = os.environ.get(ENDED)
    # A program takes the file's folder away some time after its recording has ended.
    return bool(file) and (os.path.exists(str(file)) or not os.path.exists(os.path.dirname(str(file))))


def end_when_told(session: Session, then: Callable[[], object] = lambda: None) -> None:
    """Ends the session's pass once the file is there and the engine is between two steps; ``then`` is called."""
    if os.environ.get(ENDED):
        threading.Thread(target=_wait, args=(session, then), name="tracereplay-ending", daemon=True).start()


def _wait(session: Session, then: Callable[[], object]) -> None:
    while not is_over():
        time.sleep(LOOK)
    while not session.end_between_steps():
        time.sleep(AGAIN)
    then()
