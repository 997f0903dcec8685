"""A census and what calls were fed, through a segment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tracereplay.census import Census, Counted, Unowned
from tracereplay.errors import DamagedTrace
from tracereplay.event import Site, make_rows
from tracereplay.trace import PendingCall, SegmentReader, SegmentWriter, TensorBytes

CENSUS: Mapping[str, Any] = {
    "operators": 2,
    "calls": 4,
    "unobserved": [["model.layers.0.odd", "Odd", 2, 6]],
    "between": [["model", "Model", 2, 1]],
    "parameters": [["model.gain", "bfloat16", [8], ["model"]]],
}


def written(path: Path, census: Mapping[str, Any] | None, fed: tuple[int, ...] | None = None) -> SegmentReader:
    rows = make_rows([(0, 0, 0)])
    writer = SegmentWriter(path, {})
    writer.sites([Site("site", "Operator", 7)])
    tensor = TensorBytes("float32", (1, 2), (2, 1), bytes(8))
    call = PendingCall(7, 0, rows, rows, {0: tensor}, {0: tensor}, {}, fed)
    writer.step(0, rows, [call], [], [], census=census)
    writer.close({})
    return SegmentReader(path)


def test_a_census_is_read_as_it_was_written(tmp_path: Path) -> None:
    step = written(tmp_path / "record-rank0.seg", CENSUS).step(0)
    assert step.census == Census(
        2, 4, (Counted("model.layers.0.odd", "Odd", 2, 6),), (Counted("model", "Model", 2, 1),),
        (Unowned("model.gain", "bfloat16", (8,), ("model",)),),
    )  # fmt: skip
    assert step.calls[0].fed is None


def test_a_call_says_what_it_was_fed(tmp_path: Path) -> None:
    step = written(tmp_path / "injected-rank0.seg", None, fed=(1, 0)).step(0)
    assert step.calls[0].fed == (0, 1)
    assert step.census is None
    assert written(tmp_path / "none-rank0.seg", None, fed=()).step(0).calls[0].fed == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"operators": -1},
        {"calls": "many"},
        {"unobserved": [["module", "Class", 1]]},
        {"unobserved": [[3, "Class", 1, 1]]},
        {"between": 5},
        {"parameters": [["name", "bfloat16", [-1], []]]},
        {"parameters": [["name", "bfloat16", [1], [None]]]},
    ],
)
def test_refuses_a_census_that_is_none(tmp_path: Path, wrong: Mapping[str, Any]) -> None:
    segment = written(tmp_path / "record-rank0.seg", {**CENSUS, **wrong})
    with pytest.raises(DamagedTrace, match="step record"):
        segment.step(0)
