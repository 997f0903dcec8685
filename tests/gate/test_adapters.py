"""Which adapter a replay may take for a recorded one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tracereplay.errors import WorkloadError
from tracereplay.gate.adapters import with_adapters
from tracereplay.storage.adapter import Adapter, adapter_settings, read_adapter
from tracereplay.workload import Prompt


def adapter(path: Path, weight: float, rank: int = 8) -> Adapter:
    path.mkdir()
    save_file({"a": np.full(4, weight, np.float32)}, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 16}))
    return read_adapter("mine", path)


def asked(known: Adapter) -> Prompt:
    return Prompt((1,), None, {"lora": known.as_dict()})


def test_an_adapter_that_was_replaced_under_its_name_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    first, second = adapter(tmp_path / "a", 1.0), adapter(tmp_path / "b", 2.0)
    prompts, ranks = with_adapters([asked(first), asked(second), asked(first)], {})
    assert [p.sampling["lora"]["digest"] for p in prompts] == [first.digest, second.digest, first.digest]
    assert ranks == [8, 8]
    with pytest.raises(WorkloadError, match=r"golden's request 1 was served with"):
        with_adapters([asked(first), asked(second)], {"mine": first.path})


def test_an_adapter_whose_files_changed_is_refused(tmp_path: Path) -> None:
    known = adapter(tmp_path / "a", 1.0)
    with pytest.raises(WorkloadError, match=r"is no longer the 'mine'"):
        with_adapters([asked(replace(known, digest="0" * 32))], {})


def test_engines_make_room_for_the_largest_adapter() -> None:
    assert adapter_settings([], {}) == {}
    assert adapter_settings([8, 16], {}) == {"enable_lora": True}
    assert adapter_settings([8, 40], {"enable_lora": False}) == {"max_lora_rank": 64}
