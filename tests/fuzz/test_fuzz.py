"""Each fuzzer runs for a moment (TRACEREPLAY_FUZZ_SECONDS; longer in CI) and finds nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from targets import TARGETS

FUZZ = Path(__file__).parent / "fuzz.py"
SECONDS = os.environ.get("TRACEREPLAY_FUZZ_SECONDS", "2")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this system and Python"
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, subprocess.Popen[str]]]:
    """All fuzzers, side by side."""
    work = tmp_path_factory.mktemp("fuzz")
    found = {
        name: subprocess.Popen(
            [sys.executable, str(FUZZ), name, "--seconds", SECONDS, "--work", str(work)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in TARGETS
    }  # fmt: skip
    yield found
    for process in found.values():
        process.kill()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_fuzzer_finds_nothing(running: Mapping[str, subprocess.Popen[str]], name: str) -> None:
    said, _ = running[name].communicate(timeout=int(SECONDS) + 120)
    assert running[name].returncode == 0, said[-3000:]
    executed = re.search(r"number_of_executed_units: (\d+)", said)
    assert executed is not None, said[-3000:]
    assert int(executed[1]) > 100
