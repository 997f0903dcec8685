"""Fills the manifest of a recorded command's trace, while the command runs and when the trace has ended."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

from tracereplay.errors import TracereplayError
from tracereplay.passes import RECORD
from tracereplay.storage.checkpoint import model_files, read_checkpoint
from tracereplay.trace import TraceDirectory, open_trace
from tracereplay.trace.directory import CLAIM
from tracereplay.trace.requests import described
from tracereplay.trace.served import is_whole

__all__ = ["Checkpoints", "Filling"]


class Checkpoints:
    """The digests of the weights that traces name, each read once, in a thread: that takes minutes."""

    def __init__(self) -> None:
        self._threads: dict[Path, threading.Thread] = {}
        self._found: dict[Path, dict[str, Any]] = {}

    def begin(self, model: Path) -> None:
        """Begins reading."""
        if model not in self._threads:
            self._threads[model] = threading.Thread(target=self._read, args=(model,), daemon=True)
            self._threads[model].start()

    def there(self, model: Path) -> bool:
        """Whether it has been read."""
        return model in self._threads and not self._threads[model].is_alive()

    def of(self, model: Path) -> dict[str, Any]:
        """What was found; waits for it. Empty: nothing."""
        self._threads[model].join()
        return self._found.get(model, {})

    def _read(self, model: Path) -> None:
        try:
            found = read_checkpoint(model) if model.is_dir() else None
        except (TracereplayError, OSError):
            return
        if found is not None and found.digest is not None:
            self._found[model] = {
                "weights": found.digest, "tensors": found.tensors, "files": model_files(model),
            }  # fmt: skip


class Filling:
    """Fills a trace's manifest, so that it is useful whenever this process dies.

    Args:
        directory: the trace.
        checkpoints: shared by the traces of a recording.
    """

    def __init__(self, directory: TraceDirectory, checkpoints: Checkpoints) -> None:
        self.directory = directory
        self._checkpoints = checkpoints
        self._model: Path | None = None
        self._said = False
        self._notes = list(directory.notes)  # the segments say their own again when the trace has ended

    def look(self) -> None:
        """Fills in engine, model and settings once an engine has begun its segment, and the weights' digests once
        they are read."""
        try:
            if self._model is None:
                self._begin()
            if self._model is not None and not self._said and self._checkpoints.there(self._model):
                self._said = True
                self._write()
        except (TracereplayError, OSError):
            pass  # a segment may have just begun; the command goes on in any case

    @property
    def ready(self) -> bool:
        """Whether `finish` need not wait for digests of weights."""
        return self._model is None or self._checkpoints.there(self._model)

    def _begin(self) -> None:
        trace = open_trace(self.directory.path)
        if RECORD not in trace.passes or not all(trace.part(key).meta for key in trace.parts_of(RECORD)):
            return
        self._write()
        self._model = Path(trace.raw_run["workload"]["model"])
        self._checkpoints.begin(self._model)

    def _write(self) -> None:
        """Writes the manifest without prompts, which may be very many and are in the segments."""
        trace = open_trace(self.directory.path)
        run = {**trace.raw_run, "workload": {**trace.raw_run["workload"], "prompts": []}, "notes": self._notes}
        self._fill(run)
        self.directory.update_run(**run)

    def _fill(self, run: dict[str, Any]) -> None:
        found = self._checkpoints.of(self._model) if self._said and self._model is not None else {}
        if found:
            run["workload"]["weights"] = found["weights"]
            run["checkpoint"] = found["tensors"]
            run["model_files"] = found["files"]

    def finish(self, *, empty: bool = True) -> bool:
        """Completes the manifest when the trace has ended; marks it complete if nothing is missing.

        A trace into which no engine wrote is removed. Returns whether it is there.

        Args:
            empty: whether one without steps is kept; one that was cut off is in any case.
        """
        trace = open_trace(self.directory.path)
        parts = [trace.part(key) for key in trace.parts_of(RECORD)]
        if not parts or not (empty or any(len(part) or not part.complete for part in parts)):
            shutil.rmtree(self.directory.path)
            self.directory.let_go()
            return False
        if self._model is None:
            self._begin()
        self._said = self._model is not None
        trace = open_trace(self.directory.path)
        run = {**trace.raw_run, "workload": dict(trace.raw_run["workload"])}
        self._fill(run)
        if trace.request_files:
            run["requests"] = {name: described(file) for name, file in trace.request_files.items()}
        self.directory.update_run(**run)
        for claim in self.directory.path.glob(CLAIM.format("*")):
            claim.unlink(missing_ok=True)
        if is_whole(trace):
            self.directory.complete()
        self.directory.let_go()
        return True
