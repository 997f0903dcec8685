"""The public names are documented with examples that run: with the toy engine, in a folder of their own."""

from __future__ import annotations

import doctest
import inspect
import json
import sys
from pathlib import Path

import pytest

import tracereplay
from tracereplay.engines.toy.checkpoint import write_checkpoint
from tracereplay.engines.toy.family import TOY, VERSION
from tracereplay.environments.registry import Engine, register


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run: a model, the toy by its name, golden and a candidate."""
    found = tmp_path_factory.mktemp("examples")
    write_checkpoint(found / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACEREPLAY_HOME", str(found / "home"))
        register(Engine("toy", Path(sys.executable), versions={TOY.package: VERSION}, family=TOY.name))
        work = tracereplay.Workload.of(found / "model", ["Hello"], max_tokens=6)
        tracereplay.record("toy", work, found / "golden.trace")
        tracereplay.replay(found / "golden.trace", "toy", out=found / "candidate.trace")
    return found


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEREPLAY_HOME", str(place / "home"))
    monkeypatch.chdir(place)


def examples(name: str) -> list[doctest.DocTest]:
    """Those of a public name and of its methods."""
    given = {"tracereplay": tracereplay, "json": json, "Path": Path}
    found = doctest.DocTestFinder(recurse=True).find(getattr(tracereplay, name), name, globs=given)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", tracereplay.__all__)
def test_a_public_name_has_examples_and_they_hold(name: str) -> None:
    tests = examples(name)
    assert tests, f"{name} has no example"
    said: list[str] = []
    for test in tests:
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)


def test_public_names_are_sorted_and_documented() -> None:
    assert tracereplay.__all__ == sorted(tracereplay.__all__)
    assert all(inspect.getdoc(getattr(tracereplay, name)) for name in tracereplay.__all__)
