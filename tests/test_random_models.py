"""Random models of every family are whole, repeatable, and read alike by old engines and new."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "fixtures"))
from families import FAMILIES  # noqa: E402
from make_random_model import PRESETS, Size, write_model  # noqa: E402

from tracereplay.storage.checkpoint import read_checkpoint  # noqa: E402

ZOO = PRESETS["zoo"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_whole_and_states_its_dtype_under_both_names(tmp_path: Path, name: str) -> None:
    write_model(name, tmp_path / "one", ZOO)
    write_model(name, tmp_path / "two", ZOO)
    data = (tmp_path / "one" / "model.safetensors").read_bytes()
    assert data == (tmp_path / "two" / "model.safetensors").read_bytes()
    start = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + start])
    assert max(t["data_offsets"][1] for n, t in header.items() if n != "__metadata__") == len(data) - 8 - start
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert (config["architectures"], config["model_type"]) == (
        [FAMILIES[name].architecture], FAMILIES[name].model_type,
    )  # fmt: skip
    assert (FAMILIES[name].head in header) != config["tie_word_embeddings"]


def test_the_weights_of_a_command_never_change(tmp_path: Path) -> None:
    write_model("llama", tmp_path, Size(layers=1, hidden=64, heads=2, kv_heads=1, intermediate=64, vocab=320))
    assert read_checkpoint(tmp_path).digest == "e9c1cf2be17a3e1efe6efb14534ed57b"


def test_layers_of_another_kind_have_other_tensors(tmp_path: Path) -> None:
    write_model("deepseek_v3", tmp_path, ZOO)
    names = set(read_checkpoint(tmp_path).tensors)
    assert "model.layers.0.mlp.gate_proj.weight" in names
    assert "model.layers.0.mlp.gate.weight" not in names
    experts = {f"model.layers.{layer}.mlp.experts.{e}.up_proj.weight" for layer in (1, 2) for e in range(4)}
    assert experts <= names
    assert "model.layers.1.mlp.up_proj.weight" not in names


def test_eight_bits_hold_the_projection_that_they_stand_for(tmp_path: Path) -> None:
    write_model("llama_w8a8", tmp_path, ZOO)
    data = (tmp_path / "model.safetensors").read_bytes()
    start = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + start])

    def load(name: str, dtype: str) -> np.ndarray:
        begin, end = header[name]["data_offsets"]
        found = np.frombuffer(data[8 + start + begin : 8 + start + end], dtype)
        return found.reshape(header[name]["shape"])

    stem = "model.layers.0.mlp.up_proj"
    bits = load(f"{stem}.weight_scale", "<u2").astype("<u4") << 16
    values = load(f"{stem}.weight", "i1") * bits.view("<f4")
    assert values.shape == (256, 128)
    assert values.std() == pytest.approx(1 / np.sqrt(128), rel=0.1)
