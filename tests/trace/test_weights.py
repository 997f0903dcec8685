"""Weights are named by their digests, and copied into the trace where that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash
from safetensors.numpy import save_file

from tracereplay.launch.weights import store_weights
from tracereplay.storage.checkpoint import read_checkpoint
from tracereplay.trace import TraceDirectory, open_trace


def test_weights_are_stored_bit_for_bit_and_not_listed_as_a_pass(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {f"layers.{i}.weight": random.normal(size=(i + 1, 700, 1000)).astype(np.float32) for i in range(3)}
    tensors["scale"] = np.array(0.5, np.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    directory = TraceDirectory(tmp_path / "a.trace", {"checkpoint": read_checkpoint(tmp_path).tensors})
    store_weights(tmp_path, directory)
    trace = open_trace(directory.path)
    assert trace.passes == ()
    found = trace.weights()
    assert sorted(found) == sorted(tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(found[name].numpy(), tensor)
        assert trace.run.checkpoint[name][2] == xxhash.xxh3_128_hexdigest(tensor.tobytes())


def test_a_checkpoint_digest_depends_on_its_tensors_and_not_its_files(tmp_path: Path) -> None:
    one, two = np.ones((2, 3), np.float32), np.zeros(4, np.int64)
    layouts = {"whole": {"a": {"one": one, "two": two}}, "parts": {"a": {"two": two}, "b": {"one": one}}}
    for name, files in layouts.items():
        (tmp_path / name).mkdir()
        for file, tensors in files.items():
            save_file(tensors, tmp_path / name / f"{file}.safetensors")
    digests = {read_checkpoint(tmp_path / name).digest for name in layouts}
    assert len(digests) == 1
    assert None not in digests
    save_file({"one": one + 1, "two": two}, tmp_path / "whole" / "a.safetensors")
    assert read_checkpoint(tmp_path / "whole").digest not in digests
    assert read_checkpoint(tmp_path).digest is None
