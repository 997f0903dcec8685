"""Ends a recording whose engine lives on, as in an actor: whoever asked for it makes a file (`variables.ENDED`).

Why a thread: an engine that idles takes no step before which it could look.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tracereplay.engines.variables import ENDED, RECORD_TO

if TYPE_CHECKING:  # front ends ask only whether it is over, before torch is imported
    from tracereplay.recorder.last_step import LastStep
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


def end_when_told(session: Session, segment: Path, world: int, then: Callable[[], object] = lambda: None) -> None:
    """Ends the session's pass once the file is there and the engine is between two steps; ``then`` is called.

    Args:
        session: is not held by this.
        segment: of its pass, by which the ranks of its engine agree on the last step.
        world: how many ranks the engine has.
        then: what is done afterwards.
    """
    file = os.environ.get(ENDED)
    if not file:
        return
    from tracereplay.recorder.last_step import LastStep

    last = LastStep(Path(file).parent, segment, world)
    arguments = weakref.ref(session), last, then
    threading.Thread(target=_wait, args=arguments, name="tracereplay-ending", daemon=True).start()


def _wait(held: weakref.ref[Session], last: LastStep, then: Callable[[], object]) -> None:
    while not is_over():
        time.sleep(LOOK)
        if held() is None:
            return
    session = held()
    while session is not None and not session.end_between_steps(last):
        time.sleep(AGAIN)
    then()
