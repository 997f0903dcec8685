"""Running the program in a test, and what it is given."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tracereplay.cli.main import main
from tracereplay.engines.toy.checkpoint import write_checkpoint
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
    """A checkpoint of the toy's; its weights follow from the name."""
    write_checkpoint(path, name)
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
