"""Running the program in a test, and what it is given."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tracereplay.cli.main import main
from tracereplay.trace.manifest import write_manifest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Ended:
    """How the program ended."""

    code: int
    out: str
    err: str


class Program:
    """Runs ``tracereplay`` in this process and returns how it ended."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *words: object) -> Ended:
        self._capture.readouterr()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as ended:
                main([str(word) for word in words])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = self._capture.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)


def make_model(path: Path, name: str = "weights of the toy") -> Path:
    """A directory that looks like a checkpoint; its one tensor says which weights these are."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"name": name}))
    save_file({"weights": np.frombuffer(name.encode(), np.uint8)}, str(path / "model.safetensors"))
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def moved(recorded: Path, path: Path, model: Path) -> Path:
    """A copy of a recording, as if its model had been this one."""
    shutil.copytree(recorded, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["run"]["workload"]["model"] = str(model)
    (path / "manifest.json").write_bytes(write_manifest(manifest))
    return path
