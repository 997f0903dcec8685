"""What the program is given in tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tracereplay.engines.toy.checkpoint import write_checkpoint
from tracereplay.trace.manifest import write_manifest

HERE = Path(__file__).parent


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
