"""What is held of a pass as a generation grows longer: a few hundred bytes a row, whatever its operators."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tracereplay.engines import toy
from tracereplay.trace import open_trace

pytestmark = pytest.mark.program

SHORT, LONG = 100, 500
PASSES = ("golden", "record"), ("candidate", "rerun"), ("candidate", "injected")
SCRIPT = """
import sys, tracemalloc
from pathlib import Path
from tracereplay.comparator.numbers.align import index_pass
from tracereplay.comparator.tokens.generation import read_generation
from tracereplay.trace import open_trace, reader
from tracereplay.trace.rows import RowFinder

reader.CACHED = reader.CACHED_OF_LARGE = 1 << 17  # else memory grows up to what decoded chunks may take

def held(golden, candidate):
    mine, theirs = open_trace(golden), open_trace(candidate)
    finder = RowFinder(read_generation(mine, "record").tokens)
    found = [index_pass(mine, "record", finder.add)]
    found += [index_pass(theirs, name, finder.find) for name in theirs.passes]
    tables = [len(table.ids) for index in found for table in index.tables.values()]  # their rows are made here
    return found, tables, tracemalloc.get_traced_memory()[0]

tracemalloc.start()
held(sys.argv[1], sys.argv[2])  # imports on use, pools
before = tracemalloc.get_traced_memory()[0]
print(held(sys.argv[3], sys.argv[4])[2] - before)
"""


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Goldens of two lengths, and for each a candidate that puts other rows into its batches."""
    folder = tmp_path_factory.mktemp("long")
    found = {}
    for steps in (4, SHORT, LONG):
        golden = toy.record(toy.workload(max_tokens=steps), folder / f"{steps}.golden")
        found[f"golden {steps}"] = golden
        candidate = folder / f"{steps}.candidate"
        found[f"candidate {steps}"] = toy.replay(golden, candidate, rounding="truncate", max_rows=2)
    return found


def test_memory_hardly_grows_with_rows(traces: dict[str, Path]) -> None:
    def held(steps: int) -> int:
        given = [str(traces[f"{side} {n}"]) for n in (4, steps) for side in ("golden", "candidate")]
        command = [sys.executable, "-c", SCRIPT, *given]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout)

    rows = [
        sum(len(step.rows) for side, name in PASSES for step in open_trace(traces[f"{side} {n}"]).records(name))
        for n in (SHORT, LONG)
    ]
    assert rows[1] - rows[0] == 3 * 3 * (LONG - SHORT)
    assert (held(LONG) - held(SHORT)) / (rows[1] - rows[0]) < 1024  # bytes; at a row a step, of a step
