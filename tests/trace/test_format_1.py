"""Every version from format 1 on reads its traces: what they held when they were written is what is read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tracereplay.trace import open_trace
from tracereplay.trace.verify import verify

FIXTURES = Path(__file__).parents[2] / "fixtures"
NAMES = {"golden.trace": None, "candidate.pack": "golden.trace", "rows.pack": "golden.trace",
         "cut.trace": None, "corners.trace": None, "odd.pack": "corners.trace", "ranks.trace": None}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that wrote them, for the words in which it described them."""
    spec = importlib.util.spec_from_file_location("make_format_1", FIXTURES / "make_format_1.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_of_format_1_reads_as_it_was_written(script: ModuleType, name: str) -> None:
    folder = FIXTURES / "format-1"
    base = None if NAMES[name] is None else open_trace(folder / str(NAMES[name]))
    expected = json.loads((folder / f"{name.split('.')[0]}.json").read_text())
    assert json.loads(json.dumps(script.described(open_trace(folder / name, base)))) == expected
    assert (
        json.loads(json.dumps(script.described(open_trace(folder / name)))) == expected
    )  # the base lies beside it


def test_truncated_traces_are_recoverable_and_the_others_complete() -> None:
    states = {name: {r.state for r in verify(open_trace(FIXTURES / "format-1" / name))} for name in NAMES}
    assert {name for name, found in states.items() if "recoverable" in found} == {"cut.trace", "ranks.trace"}
    assert not any("damaged" in found for found in states.values())
