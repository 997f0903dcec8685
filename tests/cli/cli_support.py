"""What the program is given in tests."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import msgpack

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


def forms(tokens: list[int]) -> dict[str, bytes]:
    """How a sequence of tokens may stand in bytes."""
    count = len(tokens)
    return {
        "int64": struct.pack(f"<{count}q", *tokens),
        "int32": struct.pack(f"<{count}i", *tokens),
        "msgpack": b"".join(map(msgpack.packb, tokens)),
        "JSON": json.dumps(tokens)[1:-1].encode(),
    }
