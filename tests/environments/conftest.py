"""A home of its own for every test, and a uv that needs no network."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

# Stands in for uv: `venv` makes an environment, `pip install` writes down how it was called. Files beside it
# change what it does: `hang` makes it wait for that many seconds, `fail` makes it end with an error.
FAKE_UV = """#!{python}
import json, os, sys, time
from pathlib import Path
here = Path(__file__).parent
words = sys.argv[1:]
with open(here / "calls", "a") as calls:
    calls.write(json.dumps({{"words": words, "env": dict(os.environ)}}) + "\\n")
if words[0] == "venv":
    root = Path(words[-1])
    assert not root.exists(), "an environment must be built from nothing"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "python").write_text({interpreter!r})
    (root / "bin" / "python").chmod(0o755)
    print("Using CPython of the tests")
else:
    root = Path(words[words.index("--python") + 1]).parent.parent
    (root / "half").write_text("installed so far")
    if (here / "hang").exists():
        time.sleep(float((here / "hang").read_text()))
    if (here / "fail").exists():
        print("  x No solution found: because there is no version of thing==1")
        sys.exit(1)
    (root / "whole").write_text("installed")
    print("Installed 1 package in 1ms")
"""

# The interpreter of such an environment answers the one question that it is asked (registry.INSPECT).
INTERPRETER = """#!/bin/sh
echo 'INSPECTED{"python": "3.11.7", "vllm": null, "torch": null, "transformers": null}'
"""


class FakeUv:
    """The stand-in and what it was asked to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "uv"
        self.path.write_text(FAKE_UV.format(python=sys.executable, interpreter=INTERPRETER))
        self.path.chmod(0o755)

    def hang(self, seconds: float) -> None:
        (self.folder / "hang").write_text(str(seconds))

    def fail(self) -> None:
        (self.folder / "fail").touch()

    def behave(self) -> None:
        for name in ("hang", "fail"):
            (self.folder / name).unlink(missing_ok=True)

    @property
    def calls(self) -> list[dict[str, Any]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def installs(self) -> list[dict[str, Any]]:
        return [call for call in self.calls if call["words"][:2] == ["pip", "install"]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    monkeypatch.setenv("TRACEREPLAY_HOME", str(path))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    return path


@pytest.fixture
def uv(tmp_path: Path) -> FakeUv:
    folder = tmp_path / "fake-uv"
    folder.mkdir()
    return FakeUv(folder)


@pytest.fixture
def gcc() -> str:
    """A C compiler; where there is none the test is skipped, but never in CI."""
    found = shutil.which("gcc")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("gcc is not installed")
    return found
