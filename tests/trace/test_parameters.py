"""Weights are read from the checkpoint, joined as the engine joins them, and are those of the recording."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tracereplay import open_trace
from tracereplay.errors import MissingWeights
from tracereplay.event import Parameter, Site
from tracereplay.trace.parameters import Parameters

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODEL = FIXTURES / "tiny-llama"


@pytest.fixture(scope="module")
def golden():
    with_sites = open_trace(FIXTURES / "tiny-llama-v0.trace")
    yield with_sites
    with_sites.close()


def parameter(golden, site: str) -> Parameter:
    (found,) = golden.sites("record")[site].parameters
    return found


def test_fused_weights_are_joined_in_order(golden) -> None:
    parameters = Parameters(golden, MODEL)
    fused = parameter(golden, "model.layers.0.self_attn.qkv_proj")
    whole = parameters.load(fused)
    assert whole.shape == fused.shape
    apart = [parameters.load(replace(fused, tensors=(name,), shape=(0,))) for name in fused.tensors]
    assert [len(part) for part in apart] == [128, 64, 64]
    assert np.array_equal(whole.view(np.uint16), np.concatenate(apart).view(np.uint16))


def test_a_wider_dtype_has_the_same_values_and_a_padded_vocabulary_ends_in_zeros(golden) -> None:
    parameters = Parameters(golden, MODEL)
    known = parameter(golden, "model.embed_tokens")
    plain = parameters.load(known)
    other = parameters.load(replace(known, dtype="float32", shape=(384, 128)))
    assert (other.dtype, other.shape) == (np.float32, (384, 128))
    assert np.array_equal(other[:320], plain.astype(np.float32))
    assert not other[320:].any()


def same(parameters: Parameters, site: Site) -> bool:
    try:
        for known in site.parameters:
            parameters.load(known)
    except MissingWeights:
        return False
    return True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tensors": ()}, "It is not known from which"),
        ({"tensors": ("no.such",)}, "no tensor no.such in"),
        ({"tensors": ("model.norm.weight", "lm_head.weight")}, "do not fit together"),
        ({"shape": (1 << 40, 128)}, "rows more than the checkpoint"),
    ],
)
def test_reports_weights_that_are_missing(golden, change, words: str) -> None:
    with pytest.raises(MissingWeights, match=words):
        Parameters(golden, MODEL).load(replace(parameter(golden, "model.embed_tokens"), **change))


def test_different_weights_are_refused(golden, tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "other")
    (file,) = (tmp_path / "other").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    parameters = Parameters(golden, tmp_path / "other")
    refused = [site.name for site in golden.sites("record").values() if not same(parameters, site)]
    assert len(refused) == 1
    with pytest.raises(MissingWeights, match="no model directory"):
        Parameters(golden, tmp_path / "none").load(parameter(golden, "model.norm"))
