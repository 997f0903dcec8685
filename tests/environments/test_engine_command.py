"""``tracereplay engine`` at the command line, with a stand-in for uv."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from tracereplay.cli.engine import app
from tracereplay.environments import create, load_engine
from tracereplay.errors import EngineNotFound, UsageError

if TYPE_CHECKING:
    from conftest import FakeUv


def run(*words: str) -> str:
    """What the command printed; an error of tracereplay's is raised, as the program's main does the wording."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def made(uv: FakeUv, monkeypatch: pytest.MonkeyPatch) -> FakeUv:
    monkeypatch.setattr(create, "uv_binary", lambda: str(uv.path))
    return uv


def test_create_builds_once_and_says_so(made: FakeUv) -> None:
    first = run("create", "e", "thing==1")
    assert "Installed 1 package" in first
    assert "The engine 'e' is ready (thing==1, built in" in first
    assert "its environment was there already" in run("create", "e", "thing==1")


def test_list_shows_what_there_is(made: FakeUv) -> None:
    assert "There are no engines yet" in run("list")
    run("create", "e", "thing==1")
    assert "thing-1-" in run("list")


def test_add_takes_variables_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    (tmp_path / "vllm-1.2.3.dist-info").mkdir()
    (tmp_path / "vllm-1.2.3.dist-info" / "METADATA").write_text("Name: vllm\nVersion: 1.2.3\n")
    words = ["--python", sys.executable, "--env", f"PYTHONPATH={tmp_path}", "--env", "A=b=c"]
    said = run("add", "gpu", *words, "--set", "enforce_eager=true", "--set", "dtype=half", "--set", "n=2")
    assert "vLLM 1.2.3" in said
    engine = load_engine("gpu")
    assert engine.env == {"PYTHONPATH": str(tmp_path), "A": "b=c"}
    assert engine.settings == {"enforce_eager": True, "dtype": "half", "n": 2}


def test_add_refuses_what_is_not_a_pair() -> None:
    with pytest.raises(UsageError, match="--env 'A' is not of the form KEY=VALUE"):
        run("add", "gpu", "--python", sys.executable, "--env", "A")


def test_remove_says_what_became_of_the_environment(made: FakeUv) -> None:
    run("create", "a", "thing==1")
    run("create", "b", "thing==1")
    assert "was left as it is" in run("remove", "a")
    assert "and its environment were removed" in run("remove", "b")
    with pytest.raises(EngineNotFound):
        run("remove", "b")


def test_doctor_ends_with_4_and_says_what_to_do(made: FakeUv) -> None:
    run("create", "e", "thing==1")
    result = CliRunner().invoke(app, ["doctor", "e", "--no-start"])
    assert result.exit_code == 4
    assert "has no vLLM" in result.output
    assert "tracereplay engine create e thing==1" in result.output
