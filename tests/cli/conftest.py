"""The program in a home of its own, with the toy engine registered as ``toy``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli_support import HERE, make_model, moved, write
from program import Program

from tracereplay.engines.toy.family import TOY, VERSION
from tracereplay.environments.registry import Engine, register

# An interpreter that runs the tests' driver of the toy in place of its own.
PYTHON = f"""#!/bin/sh
if [ "$1 $3" = "-c {TOY.driver}" ]; then shift 3; set -- "{HERE / "toy_driver.py"}" "$@"; fi
exec "{sys.executable}" "$@"
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where engines are registered: empty but for the toy, which may come to grief (`toy_driver`)."""
    path = tmp_path / "home"
    monkeypatch.setenv("TRACEREPLAY_HOME", str(path))
    monkeypatch.setenv("COLUMNS", "200")
    path.mkdir()
    python = write(path / "python", PYTHON)
    python.chmod(0o755)
    register(Engine("toy", python, versions={TOY.package: VERSION}, family=TOY.name))
    return path


@pytest.fixture
def tracereplay(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = '{"prompt_token_ids": [5, 6, 7, 8], "max_tokens": 4}\n\n{"prompt": "hello", "max_tokens": 6}\n'
    return write(tmp_path / "prompts.jsonl", lines)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one recording lies that `golden` copies."""
    return tmp_path_factory.mktemp("recorded") / "golden.trace"


@pytest.fixture
def golden(tracereplay: Program, model: Path, prompts: Path, recorded: Path, tmp_path: Path) -> Path:
    """A recording of the toy engine, of this test's own model."""
    if not recorded.exists():
        ended = tracereplay("record", "--engine", "toy", "--model", model, "--prompts", prompts, "-o", recorded)
        assert ended.code == 0, ended.err
    return moved(recorded, tmp_path / "golden.trace", model)
