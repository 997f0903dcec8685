"""What is read of a checkpoint's configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tracereplay.storage.model_config import read_model_config

TINY = Path(__file__).parents[2] / "fixtures" / "tiny-llama"


def test_a_configuration_says_what_is_computed() -> None:
    found = read_model_config(TINY)
    assert (found["num_hidden_layers"], found["rope_theta"], found["hidden_act"]) == (5, 10000.0, "silu")
    assert not {"architectures", "torch_dtype", "attention_dropout"} & set(found)


def test_what_is_long_is_there_by_its_digest(tmp_path: Path) -> None:
    def read(modules: list[str]) -> object:
        config = {"quantization_config": {"ignore": modules}, "rope_scaling": None, "_commit": "x"}
        (tmp_path / "config.json").write_text(json.dumps(config))
        found = read_model_config(tmp_path)
        assert set(found) == {"quantization_config"}
        return found["quantization_config"]

    assert read(["a"]) == {"ignore": ["a"]}
    one, other = (read([f"model.layers.{i}" for i in range(n)]) for n in (200, 201))
    assert one != other
    assert "characters of JSON, xxh3-128 " in str(one)
    assert len(str(one)) < 80


@pytest.mark.parametrize("text", [None, "{", "[]", "[" * 100_000])
def test_a_configuration_that_cannot_be_read_says_nothing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert read_model_config(tmp_path) == {}
