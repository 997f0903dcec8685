"""The toy engine behind the protocol of engines' drivers: what the command line starts in tests.

Settings: ``dtype``; ``rounding``, ``noise`` and ``flaw`` ("site:kind", several with commas) as in `engines.toy`;
``dies`` ("loading" or "generating") ends the process there; ``hangs`` (a file) generates until the input ends,
with the process ids of the engine and of its worker in that file; ``loses`` says the recorder could not write. The
variable TOY_FLAW is a flaw that no setting tells, and TOY_NAMING how the operators of a recording are named.
"""

from __future__ import annotations

import difflib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tracereplay.cancellation import Cancellation
from tracereplay.engines import toy
from tracereplay.errors import TracereplayError, UsageError, WorkloadError
from tracereplay.workload import Prompt, Workload

KNOWN = (
    "dtype", "rounding", "flaw", "noise", "dies", "hangs", "loses", "enforce_eager", "max_model_len",
    "max_num_batched_tokens", "max_num_seqs", "enable_chunked_prefill",
)  # fmt: skip


class Driver:
    """One toy engine."""

    def start(self, model: str, settings: dict[str, Any]) -> dict[str, Any]:
        for name in settings:
            if name not in KNOWN:
                close = difflib.get_close_matches(name, KNOWN)
                raise UsageError(f"This engine knows no setting {name!r}; did you mean {close}?")
        if settings.get("dies") == "loading":
            print("RuntimeError: \x1b[31mthe toy engine cannot load its model\x1b[0m", file=sys.stderr)
            sys.exit(3)
        if settings.get("rounding") == "twice" and settings.get("dtype") == "float32":
            print("ValueError: rounding twice is for half precision", file=sys.stderr)
            sys.exit(1)
        self.settings = settings
        # The toy's weights follow from this name, so that another model directory holds other weights.
        self.model = json.loads((Path(model) / "config.json").read_text())["name"]
        shown = {k: v for k, v in settings.items() if k in ("dtype", "enforce_eager")}
        shown.setdefault("dtype", "bfloat16")
        shown["engine_generation"] = settings.get("rounding", "once")
        return {"versions": {"toy": "2.0"}, "settings": shown, "device": "cpu", "environment": {}, "ranks": 1}

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def generate(self, prompts: list[dict[str, Any]], recording: dict[str, Any] | None) -> dict[str, Any]:
        for number, prompt in enumerate(prompts):
            if wrong := [i for i in prompt["prompt_token_ids"] if i >= toy.VOCABULARY]:
                raise WorkloadError(
                    f"Prompt {number} has the token id {wrong[0]}; the model's vocabulary ends at 255."
                )
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "toy.trace"
            self._run(prompts, recording, made)
            if recording is not None:
                self._hand_over(made, Path(recording["trace"]), recording["pass_name"])
            results = json.loads((made / "manifest.json").read_text())["passes"].popitem()[1]
            errors = {"No space left on device (while writing the trace)": 3} if self.settings.get("loses") else {}
            return {**results, "ranks": [{"steps": len(results["requests"]), "errors": errors}]}

    def _run(self, prompts: list[dict[str, Any]], recording: dict[str, Any] | None, made: Path) -> None:
        options: dict[str, Any] = {"rounding": self.settings.get("rounding", "once")}
        if flaw := self.settings.get("flaw") or os.environ.get("TOY_FLAW"):
            options["flaw"] = [toy.Flaw(*one.split(":")) for one in flaw.split(",")]
        if recording is None or recording["golden"] is None:
            work = Workload(self.model, tuple(map(_prompt, prompts)), self._dtype())
            toy.record(work, made, naming=os.environ.get("TOY_NAMING", "fused"), **options)
        else:
            golden = Path(recording["golden"])
            if cancel := recording.get("cancel"):
                options["cancel"] = Path(cancel["injected"]), Cancellation.from_dict(cancel)
            options["settings"] = self._dtype()
            options["noise"] = self.settings.get("noise", 0.0)
            options["max_rows"] = self.settings.get("max_num_batched_tokens")
            toy.replay(golden, made, passes=(recording["pass_name"],), model=self.model, **options)

    def _dtype(self) -> dict[str, Any]:
        return {"dtype": self.settings["dtype"]} if "dtype" in self.settings else {}

    def _hand_over(self, made: Path, trace: Path, name: str) -> None:
        """The segment as the engine's worker would have written it, whole or not."""
        data = (made / f"{name}-rank0.seg").read_bytes()
        dies, hangs = self.settings.get("dies") == "generating", self.settings.get("hangs")
        (trace / f"{name}-rank0.seg").write_bytes(data[: len(data) * 2 // 3] if dies or hangs else data)
        if dies:
            print("the toy engine ran out of luck", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if hangs:
            worker = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
            partial = Path(f"{hangs}.partial")
            partial.write_text(f"{os.getpid()} {worker.pid}")
            partial.rename(hangs)
            sys.stdin.read()
            sys.exit(0)


def _prompt(said: dict[str, Any]) -> Prompt:
    return Prompt(tuple(said["prompt_token_ids"]), said["prompt"], said["sampling"])


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    driver = Driver()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"ok": getattr(driver, command.pop("do"))(**command)}
        except TracereplayError as error:
            answer = {"error": str(error), "exit_code": error.exit_code, "kind": type(error).__name__}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
