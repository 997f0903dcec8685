"""Rows of checks on real engines: two that match, one that is expected to differ, one that is not."""

from __future__ import annotations

from pathlib import Path

from engine_support import TINY

from tracereplay.trace import Trace

ROWS = """
[defaults]
engine = "v1"
model = "{model}"

[[check]]
name = "same engine"
golden = "{v1}"

[[check]]
name = "bit for bit"
golden = "{v1}"
policy = "strict"

[[check]]
name = "from V0"
golden = "{v0}"
expect = "diverged"
cause = "rounding"

[[check]]
name = "from V0, tokens alone"
golden = "{v0}"
mode = "rerun"
"""


def check_file(folder: Path, golden_v0: Trace, golden_v1: Trace) -> Path:
    path = folder / "checks.toml"
    path.write_text(ROWS.format(model=TINY, v1=golden_v1.path, v0=golden_v0.path))
    return path
