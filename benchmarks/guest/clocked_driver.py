"""The engine's side of the benchmark: the ordinary driver, with a clock around every engine step.

    python clocked_driver.py        speaks the language of `tracereplay.engines.vllm.guest.driver`

It has a folder of its own, because Python looks for modules beside a script: transformers asks for a package named
`kernels`, and would find a benchmark.

A result of ``generate`` has, beside the usual, ``steps``: for each step of the engine its wall seconds, the
processor seconds of the engine's own thread, and those of the whole process; ``begin`` and ``end``: seconds spent
on opening a recording, and on closing it after the last token; ``children``: processor seconds of the writer
process, once it has ended.

Without ``recording`` the model runs as it is, its taps taken off. ``generate`` takes more than the product's: with
``taps`` they are there and nobody records. With ``discard`` finished steps are thrown away before the writer
process hears of them, which leaves only the cost of watching and copying. ``mode`` runs each step without taps
and under a dispatch mode that is not ours: ``nothing``, which calls what it was given, or ``hashes``, PyTorch's
own DebugMode with hashes of all inputs and outputs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from tracereplay.engines.request import PassRequest
from tracereplay.engines.vllm.guest import driver, operators
from tracereplay.recorder import session
from tracereplay.recorder.writer_client import WriterClient

TAP = operators.tap  # type: ignore[attr-defined]
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
            with self._mode():
                result = step(*args, **kwargs)
            self._steps.append(since(before))
            return result

        return clocked

    def generate(
        self, prompts: list[Mapping[str, Any]], recording: PassRequest | None, *,
        taps: bool = False, mode: str | None = None, discard: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        self._steps: list[Clock] = []
        self._spent = {"begin": 0.0, "end": 0.0}
        show_taps(taps or recording is not None)
        self._mode = MODES[mode]
        session.WriterClient = Discarding if discard else WriterClient  # type: ignore
        before, children = now(), children_seconds()
        result = super().generate(prompts, recording)
        spent = {"whole": since(before), "children": children_seconds() - children}
        return {**result, **self._spent, **spent, "steps": self._steps}

    def _control(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        started = time.perf_counter()
        answers = super()._control(message)
        if message["do"] in ("begin", "end"):
            self._spent[message["do"]] = time.perf_counter() - started
        return answers


class Discarding(WriterClient):
    """Takes finished steps and keeps none."""

    def hand(self, arena: Any, *_: Any) -> None:
        self.give_back([arena])

    def step(self, *_: Any) -> None:
        pass


class Nothing(TorchDispatchMode):
    """What any dispatch mode costs."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def hashes() -> Iterator[None]:
    """PyTorch's DebugMode as somebody would use it to compare two runs."""
    from torch.utils._debug_mode import DebugMode

    with DebugMode(), DebugMode.log_tensor_hashes(hash_inputs=True):
        yield


MODES: Mapping[str | None, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    None: contextlib.nullcontext,
    "nothing": Nothing,
    "hashes": hashes,
}

tapped: list[tuple[Any, str, Any, Any]] = []  # of each tap: its module, the entry, that without it and with it


def tap(module: Any, slot: int, entries: Mapping[str, Any], **options: Any) -> tuple[str, ...]:
    """`taps.tap`, remembered so that it can be taken off."""
    inputs = TAP(module, slot, entries, **options)
    tapped.extend((module, name, entry, getattr(module, name)) for name, entry in entries.items())
    return inputs


def show_taps(shown: bool) -> None:
    """Puts the taps on, or takes them off."""
    for module, name, without, with_tap in tapped:
        setattr(module, name, with_tap if shown else without)


def now() -> Clock:
    return time.perf_counter(), time.thread_time(), time.process_time()


def children_seconds() -> float:
    """Processor seconds of the children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def since(before: Clock) -> Clock:
    wall, thread, process = (b - a for a, b in zip(before, now(), strict=True))
    return wall, thread, process


if __name__ == "__main__":
    operators.tap = tap  # type: ignore[attr-defined]
    driver.Driver = TimedDriver  # type: ignore[misc]
    driver.main()
