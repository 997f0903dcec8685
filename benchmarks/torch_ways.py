"""torch.save, safetensors' save_file and SGLang's dumper on the tensors of `trace.py`, under an engine's
interpreter.

    python torch_ways.py FOLDER ROUNDS [SGLANG_WHEEL]

Files go to FOLDER. The dumper writes a file a tensor, as it does in SGLang (without what it prints for each); it
is taken out of the wheel at run time. Prints, as JSON, each way's ratio and its processor seconds for writing and
reading, one a round.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FOLDER = Path(sys.argv[1])


def read_tensors() -> list[torch.Tensor]:
    found = []
    with open(FOLDER / "tensors", "rb") as file:
        while line := file.readline():
            dtype, shape, size = json.loads(line)
            data = bytearray(file.read(size))
            found.append(torch.frombuffer(data, dtype=getattr(torch, dtype)).view(shape))
    return found


def torch_save(tensors: list[torch.Tensor], to: Path) -> None:
    for i, x in enumerate(tensors):
        torch.save(x, to / f"{i}.pt")


def torch_load(to: Path) -> None:
    for path in to.glob("*.pt"):
        torch.load(path)


def safetensors_save(tensors: list[torch.Tensor], to: Path) -> None:
    save_file({str(i): x for i, x in enumerate(tensors)}, to / "all.safetensors")


def dumper_of(wheel: Path) -> Any:
    """SGLang's dumper module, without SGLang."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("debug_utils/dumper.py"))
        path = FOLDER / "dumper.py"
        path.write_bytes(archive.read(name))
    spec = importlib.util.spec_from_file_location("dumper", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dumper"] = module
    spec.loader.exec_module(module)
    return module


def sglang_dump(module: Any, tensors: list[torch.Tensor]) -> None:
    module.dumper.reset()
    for i, x in enumerate(tensors):
        module.dumper.dump(f"tensor{i}", x)


def sglang_load(to: Path) -> None:
    for path in to.rglob("*.pt"):
        torch.load(path, weights_only=False)


def measured(write: Any, read: Any, tensors: list[torch.Tensor], rounds: int) -> dict[str, Any]:
    size = sum(x.nbytes for x in tensors)
    found: dict[str, Any] = {"encode": [], "decode": []}
    for _ in range(rounds):
        to = FOLDER / "out"
        to.mkdir()
        begun = time.process_time()
        write(tensors, to)
        written = time.process_time()
        read(to)
        found["encode"].append(written - begun)
        found["decode"].append(time.process_time() - written)
        stored = sum(p.stat().st_size for p in to.rglob("*") if p.is_file())
        found["ratio"] = size / stored if stored else 0.0
        shutil.rmtree(to)
    return found


def main() -> None:
    torch.set_num_threads(1)
    tensors, rounds = read_tensors(), int(sys.argv[2])
    ways: dict[str, tuple[Any, Any]] = {
        "torch.save, a file a tensor": (torch_save, torch_load),
        "safetensors save_file": (safetensors_save, lambda to: load_file(to / "all.safetensors")),
    }
    if len(sys.argv) > 3 and sys.argv[3]:
        os.environ |= {"DUMPER_ENABLE": "1", "DUMPER_ENABLE_OUTPUT_CONSOLE": "0"}
        os.environ["DUMPER_DIR"] = str(FOLDER / "out")
        module = dumper_of(Path(sys.argv[3]))
        ways["SGLang's dumper"] = (lambda t, to: sglang_dump(module, t), sglang_load)
    print(json.dumps({name: measured(*way, tensors, rounds) for name, way in ways.items()}))


if __name__ == "__main__":
    main()
