"""A stranger's trace of kernels, replayed in isolation: nothing that must not be is opened, made or executed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_support import find_engine
from typer.testing import CliRunner

from tracereplay.cli.main import app
from tracereplay.event import Site, make_rows
from tracereplay.trace import SegmentWriter, TensorBytes, TraceDirectory, segment_path

pytestmark = pytest.mark.engine

SITE = Site("model.norm", "RMSNorm", 7)
ROWS = make_rows([(0, 0, 0)])
FROM_FILE = "aten::from_file(str filename, bool? shared, int? size) -> Tensor"
STRIDED = "aten::as_strided(Tensor(a) self, SymInt[] size, SymInt[] stride) -> Tensor(a)"
NEG = "aten::neg(Tensor self) -> Tensor"


def write(path: Path, *calls: tuple[str, str, Sequence[Any]]) -> Path:
    """A recording whose kernels are these: name, schema, arguments as they stand in a record."""
    workload = {"model": "/nowhere", "prompts": [], "settings": {}}
    directory = TraceDirectory(path, {"kind": "recording", "level": "kernel", "workload": workload})
    writer = SegmentWriter(segment_path(path, "record", 0), {"rank": 0, "world": 1})
    writer.sites([SITE])
    x = writer.add(TensorBytes("float32", (4,), (1,), np.arange(4, dtype=np.float32).tobytes()))
    result = writer.add(TensorBytes("float32", (4,), (1,), (-np.arange(4, dtype=np.float32)).tobytes()))
    names = [[name, schema] for name, schema, _ in calls]
    records = [
        [n, SITE.slot, 0, -1, [["t", x] if a == "x" else a for a in arguments], {}, [["t", result]], [], [], ""]
        for n, (_, _, arguments) in enumerate(calls)
    ]
    writer.commit(0, ROWS, [], [], [], kernels={"names": names, "calls": records, "constants": []})
    writer.close({})
    directory.add_pass("record", {"requests": []})
    directory.complete()
    return path


def replay(golden: Path) -> tuple[int, dict[str, Any]]:
    find_engine("v1")
    result = CliRunner().invoke(
        app, ["replay", str(golden), "--engine", "v1", "--mode", "isolated", "--oracle", "--json", "-"]
    )
    return result.exit_code, json.loads(result.stdout)


def test_only_what_is_safe_is_executed(tmp_path: Path) -> None:
    made, secret = tmp_path / "made", tmp_path / "secret"
    secret.write_bytes(b"s3cret" * 10)
    calls = [
        ("aten.neg.default", NEG, ["x"]),
        ("aten.from_file.default", FROM_FILE, [str(made), True, 64]),
        ("aten.from_file.default", FROM_FILE, [str(secret), False, 16]),
        ("aten.neg.default", "aten::neg(int data_ptr) -> Tensor", [4096]),
        ("_C.onednn_mm.default", "_C::onednn_mm(Tensor c, Tensor handler_tensor) -> ()", ["x", "x"]),
        ("mine.run.default", "mine::run(str command) -> ()", [f"touch {made}"]),
        ("aten.zeros.default", "aten::zeros(SymInt[] size) -> Tensor", [["l", [1 << 31, 1 << 31]]]),
        ("aten.repeat.default", "aten::repeat(Tensor self, SymInt[] repeats) -> Tensor", ["x", ["l", [1 << 40]]]),
        ("aten.as_strided.default", STRIDED, ["x", ["l", [9]], ["l", [9000]]]),
        ("aten.neg.default", NEG, [["n", "model.secret", "float32", [4], [1], 0]]),
        ("prims.device_put.default", "prims::device_put(Tensor a, Device device) -> Tensor", ["x", "cpu"]),
    ]  # fmt: skip
    code, verdict = replay(write(tmp_path / "hostile.trace", *calls))
    isolated = verdict["isolated"]
    assert (code, verdict["verdict"]) == (0, "match")
    assert [(k["kernel"], k["class"], k["calls"]) for k in isolated["kernels"]] == [
        ("aten.neg.default", "identical", 1)
    ]
    reasons = [left["reason"] for left in isolated["not_replayed"]]
    assert sum(left["calls"] for left in isolated["not_replayed"]) == len(calls) - 1
    assert reasons.count("not replayable: it opens a file") == 1  # of both calls
    for words in (
        "'data_ptr' stands for", "the address of a packed weight", "not among the kernels", "asks for more than",
        "failed: RuntimeError: setStorage", "does not say what model.secret is",
    ):  # fmt: skip
        assert any(words in reason for reason in reasons), (words, reasons)
    assert not made.exists()
    assert "s3cret" not in json.dumps(verdict)


def test_a_trace_of_nothing_safe_is_inconclusive(tmp_path: Path) -> None:
    schema = "aten::from_file(str filename) -> Tensor"
    code, verdict = replay(
        write(tmp_path / "hostile.trace", ("aten.from_file.default", schema, ["/etc/hostname"]))
    )
    assert (code, verdict["verdict"]) == (3, "inconclusive")
    assert verdict["reasons"] == ["None of 1 calls could be replayed and compared."]
