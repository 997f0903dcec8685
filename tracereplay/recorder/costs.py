"""What a recording costs its engine, measured cheaply enough to be always on.

Two readings of the clock a step say how long steps take and how much of that is handing over. What taps take is
measured in one step of `EVERY`, in which the listener's methods are timed; in all others nothing is in their way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tracereplay.recorder.status import Counters

__all__ = ["Costs"]

EVERY = 64  # steps
SKIPPED = 4  # of the first ones, in which a census is taken and memory is touched for the first time
_METHODS = ("arrived", "returned", "feed", "observe")
_now = time.perf_counter_ns


class Costs:
    """Measures one session.

    Args:
        listener: whose methods the taps call; looked up by each call.
        counters: that are counted up.
    """

    def __init__(self, listener: Any, counters: Counters) -> None:
        self._listener, self._counters = listener, counters
        self._began = self._handing = 0
        self._seen = self._measured = 0
        self._measured_ns = 0
        self._inside = False

    def begin(self) -> None:
        """A step's own work begins."""
        self._began = _now()

    def begun(self) -> None:
        """The model runs from now on."""
        self._handing = _now() - self._began
        self._seen += 1
        if self._seen > SKIPPED and self._seen % EVERY == SKIPPED + 1:
            self._measured += 1
            for name in _METHODS:
                setattr(self._listener, name, self._timed(getattr(self._listener, name)))

    def end(self) -> int:
        """The model has run; returns the time for `ended`."""
        for name in _METHODS:
            self._listener.__dict__.pop(name, None)
        return _now()

    def ended(self, since: int) -> None:
        """The step was handed over."""
        now, counters = _now(), self._counters
        counters.step_ns += now - self._began
        counters.hand_ns += self._handing + now - since
        if self._measured:
            counters.tap_ns = self._measured_ns * counters.recorded // self._measured

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return method(*args, **kwargs)
            self._inside, begun = True, _now()
            try:
                return method(*args, **kwargs)
            finally:
                self._inside = False
                self._measured_ns += _now() - begun

        return timed
