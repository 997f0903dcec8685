"""The toy engine's driver with what goes wrong in engines, on request.

Settings beside the toy's own: ``dies`` ("loading" or "generating") ends the process there; ``hangs`` (a file)
generates until the input ends, with the process ids of the engine and of its worker in that file; ``loses`` says
that the recorder could not write. The variable TOY_FLAW is a flaw that no setting tells, and
TOY_NAMING how the operators of a recording are named. In float32 the engine
refuses to round twice.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tracereplay.engines.protocol import serve
from tracereplay.engines.request import PassRequest
from tracereplay.engines.toy.driver import ToyDriver

MISHAPS = ("dies", "hangs", "loses")


class Driver(ToyDriver):
    """One toy engine that may come to grief."""

    def start(self, model: str, settings: Mapping[str, Any], inherited: Collection[str] = ()) -> dict[str, Any]:
        self._mishaps = {name: settings[name] for name in MISHAPS if name in settings}
        own = {name: value for name, value in settings.items() if name not in MISHAPS}
        if flaw := os.environ.get("TOY_FLAW"):
            own.setdefault("flaw", flaw)
        if self._mishaps.get("dies") == "loading":
            end("RuntimeError: \x1b[31mthe toy engine cannot load its model\x1b[0m", 3)
        if (own.get("rounding"), own.get("dtype")) == ("twice", "float32"):
            end("ValueError: rounding twice is for half precision", 1)
        return super().start(model, own, inherited)

    def generate(self, prompts: list[Mapping[str, Any]], recording: PassRequest | None) -> dict[str, Any]:
        results = super().generate(prompts, recording)
        if recording is not None:
            self._come_to_grief(recording.trace / f"{recording.name}-rank0.seg")
        if self._mishaps.get("loses"):
            results["ranks"][0]["errors"] = {"No space left on device (while writing the trace)": 3}
        return results

    def _naming(self, recording: PassRequest) -> Any:
        return "fused" if recording.golden is not None else os.environ.get("TOY_NAMING", "fused")

    def _come_to_grief(self, segment: Path) -> None:
        """Ends in the middle of writing a segment, if it is to."""
        dies, hangs = self._mishaps.get("dies") == "generating", self._mishaps.get("hangs")
        if dies or hangs:
            os.truncate(segment, segment.stat().st_size * 2 // 3)
        if dies:
            print("the toy engine ran out of luck", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if hangs:
            worker = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
            partial = Path(f"{hangs}.partial")
            partial.write_text(f"{os.getpid()} {worker.pid}")
            partial.rename(hangs)
            sys.stdin.read()
            os._exit(0)


def end(words: str, code: int) -> None:
    """Ends the process as an engine does that fails before it can answer."""
    print(words, file=sys.stderr, flush=True)
    os._exit(code)


if __name__ == "__main__":
    serve(Driver())
