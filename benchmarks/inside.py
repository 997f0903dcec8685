"""The engine's side of the benchmark: the ordinary driver, with a clock around every engine step.

    python inside.py        speaks the language of `tracereplay.guest.driver`

A result of ``generate`` has, beside the usual, ``steps``: for each step of the engine its wall seconds, the
processor seconds of the engine's own thread, and those of the whole process (the writer thread's too);
``begin`` and ``end``: seconds spent on opening a recording, and on closing it after the last token.

``recording`` may have ``writer``: ``raw`` stores bytes without a codec, ``discard`` takes finished steps
and throws them away, which leaves the cost of watching and copying alone.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any

from tracereplay.guest import driver, worker
from tracereplay.trace import SegmentWriter
from tracereplay.trace.codec import RAW

Clock = tuple[float, float, float]  # wall, this thread's processor time, the process's


class TimedDriver(driver.Driver):
    """See the module."""

    def start(self, model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        described = super().start(model, settings)
        engine = self._llm.llm_engine
        engine.step = self._clocked(engine.step)
        return described

    def _clocked(self, step: Any) -> Any:
        @functools.wraps(step)
        def clocked(*args: Any, **kwargs: Any) -> Any:
            before = now()
            result = step(*args, **kwargs)
            self._steps.append(since(before))
            return result

        return clocked

    def generate(self, prompts: list[Mapping[str, Any]], recording: Mapping[str, Any] | None) -> dict[str, Any]:
        self._steps: list[Clock] = []
        self._spent = {"begin": 0.0, "end": 0.0}
        if recording is not None:
            recording = dict(recording)
            worker.SegmentWriter = WRITERS[recording.pop("writer", "usual")]  # type: ignore[misc]
        before = now()
        result = super().generate(prompts, recording)
        return {**result, **self._spent, "whole": since(before), "steps": self._steps}

    def _control(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        started = time.perf_counter()
        answers = super()._control(message)
        if message["do"] in ("begin", "end"):
            self._spent[message["do"]] = time.perf_counter() - started
        return answers


class Discarding(SegmentWriter):
    """Accepts steps and keeps none."""

    def step(self, *args: Any, **kwargs: Any) -> None:
        pass


WRITERS: Mapping[str, Any] = {
    "usual": SegmentWriter,
    "raw": functools.partial(SegmentWriter, codec_id=RAW),
    "discard": Discarding,
}


def now() -> Clock:
    return time.perf_counter(), time.thread_time(), time.process_time()


def since(before: Clock) -> Clock:
    wall, thread, process = (b - a for a, b in zip(before, now(), strict=True))
    return wall, thread, process


if __name__ == "__main__":
    driver.Driver = TimedDriver  # type: ignore[misc]
    driver.main()
