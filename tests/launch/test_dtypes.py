"""An engine that takes another dtype than the checkpoint's is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tracereplay.launch.dtypes import other_dtype

INFO = {"settings": {"dtype": "float16"}}


@pytest.mark.parametrize(
    ("config", "settings", "told"),
    [
        ({"dtype": "bfloat16"}, {}, "computes in float16, and the checkpoint was saved in bfloat16 ('dtype' in"),
        ({"torch_dtype": "float32"}, {"dtype": "auto"}, "saved in float32 ('torch_dtype' in its config.json)"),
        ({"torch_dtype": "float16"}, {}, None),
        ({"dtype": "bfloat16"}, {"dtype": "half"}, None),
        ({}, {}, None),
        ([], {}, None),
    ],
)  # fmt: skip
def test_another_dtype_than_the_checkpoints_is_told(
    tmp_path: Path, config: Any, settings: dict[str, Any], told: str | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = other_dtype(tmp_path, settings, INFO)
    assert (found is None) == (told is None)
    assert told is None or told in str(found)


def test_a_model_without_a_configuration_is_no_error(tmp_path: Path) -> None:
    assert other_dtype(tmp_path, {}, INFO) is None
