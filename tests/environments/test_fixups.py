"""The fix-up of the V0 wheel in miniature: a library lacks a symbol version, and an object asks for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracereplay.environments import elf
from tracereplay.environments.fixups import (
    Alias,
    Environment,
    Preload,
    StubSymbol,
    SystemLibrary,
    WeakVersion,
    locate,
)
from tracereplay.errors import EnvironmentFailed

OLD = "MINI_1.0 { global: old_function; };\n"
NEW = OLD + "MINI_2.0 { global: new_function; } MINI_1.0;\n"
MODULE = """
void old_function(void);
void new_function(void);
int run(void) { old_function(); new_function(); return 7; }
"""


@dataclass(frozen=True)
class Machine:
    """An environment whose package needs MINI_2.0, and a folder where the loader finds libmini.so.1."""

    env: Environment
    compiler: str
    libraries: Path

    @property
    def module(self) -> Path:
        return self.env.root / "lib" / "python3.11" / "site-packages" / "engine" / "_C.abi3.so"

    def give(self, versions: str) -> None:
        """Put a libmini of these symbol versions on the machine."""
        code = "void old_function(void) {}\n" + ("void new_function(void) {}\n" if versions == NEW else "")
        script = self.libraries / "versions"
        script.write_text(versions)
        target = self.libraries / "libmini.so.1"
        target.unlink(missing_ok=True)
        self._compile(code, target, f"-Wl,--version-script={script}", "-Wl,-soname,libmini.so.1")

    def link(self) -> None:
        """Compile the module against the libmini that is there."""
        self.module.parent.mkdir(parents=True, exist_ok=True)
        self._compile(MODULE, self.module, str(self.libraries / "libmini.so.1"))

    def load(self, *preload: Path) -> str:
        """What happens when the module is loaded and run."""
        code = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).run())"
        environment = {**os.environ, "LD_PRELOAD": ":".join(map(str, preload))}
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.module)], env=environment, capture_output=True, text=True
        )
        return done.stdout.strip() or done.stderr

    def _compile(self, code: str, target: Path, *options: str) -> None:
        command = [self.compiler, "-shared", "-fPIC", "-x", "c", "-", "-x", "none", *options, "-o", str(target)]
        subprocess.run(command, input=code, text=True, check=True)


@pytest.fixture
def machine(tmp_path: Path, gcc: str, monkeypatch: pytest.MonkeyPatch) -> Machine:
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    env = Environment(tmp_path / "env")
    env.python.parent.mkdir(parents=True)
    env.python.symlink_to(sys.executable)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries))
    result = Machine(env, gcc, libraries)
    result.give(NEW)
    result.link()
    return result


WEAK = WeakVersion("Linked too new.", "engine/_C.abi3.so", "libmini.so.1", "MINI_2.0")
STUB = StubSymbol("Must be found.", "new_function", "libmini.so.1", "MINI_2.0")


def test_both_fixups_together_make_the_module_load(machine: Machine) -> None:
    machine.give(OLD)
    assert "version `MINI_2.0' not found" in machine.load()
    for fixup in (WEAK, STUB):
        assert fixup.needed(machine.env)
        fixup.apply(machine.env)
        assert not fixup.needed(machine.env)
    assert machine.load(*STUB.preloads(machine.env)) == "7"


def test_where_the_library_is_new_enough_nothing_is_touched(machine: Machine) -> None:
    before = machine.module.read_bytes()
    for fixup in (WEAK, STUB):
        assert not fixup.needed(machine.env)
        assert fixup.preloads(machine.env) == ()
    assert machine.module.read_bytes() == before
    assert machine.load() == "7"


def test_weakening_twice_changes_nothing_more(machine: Machine) -> None:
    assert elf.weaken(machine.module, "MINI_2.0")
    once = machine.module.read_bytes()
    assert not elf.weaken(machine.module, "MINI_2.0")
    assert machine.module.read_bytes() == once
    weak = {need.version: need.weak for need in elf.version_needs(machine.module)}
    assert weak["MINI_2.0"]
    assert not weak["MINI_1.0"]


def test_weakening_changes_one_flag_and_nothing_else(machine: Machine) -> None:
    before = machine.module.read_bytes()
    elf.weaken(machine.module, "MINI_2.0")
    after = machine.module.read_bytes()
    assert [a ^ b for a, b in zip(before, after, strict=True) if a != b] == [elf.VER_FLG_WEAK]


def test_a_hard_link_in_the_cache_of_uv_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    cached = tmp_path / "cached.so"
    os.link(machine.module, cached)
    before = cached.read_bytes()
    mode = machine.module.stat().st_mode
    elf.weaken(machine.module, "MINI_2.0")
    assert cached.read_bytes() == before
    assert machine.module.read_bytes() != before
    assert machine.module.stat().st_mode == mode
    assert [p.name for p in machine.module.parent.iterdir()] == ["_C.abi3.so"]


def test_a_version_that_is_not_needed_changes_nothing(machine: Machine) -> None:
    assert not elf.weaken(machine.module, "MINI_3.0")


def test_the_needs_name_library_and_version(machine: Machine) -> None:
    needs = {(need.soname, need.version) for need in elf.version_needs(machine.module)}
    assert {("libmini.so.1", "MINI_1.0"), ("libmini.so.1", "MINI_2.0")} <= needs


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_object_is_read_or_refused_in_words(machine: Machine, data: st.DataObject) -> None:
    whole = machine.module.read_bytes()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, min(len(damaged), 1024) - 1))] = data.draw(st.integers(0, 255))
    path = machine.libraries / "damaged.so"
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(EnvironmentFailed):
        elf.version_needs(path)


def test_a_stub_without_a_compiler_says_what_to_install(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentFailed, match="apt-get install gcc"):
        STUB.apply(machine.env)


def test_the_loader_is_asked_where_a_library_is(machine: Machine) -> None:
    assert locate(machine.env.python, ("libabsent.so.9", "libmini.so.1")) == machine.libraries / "libmini.so.1"
    assert locate(machine.env.python, ("libabsent.so.9",)) is None


def test_a_system_library_is_missing_only_if_all_its_names_are(machine: Machine) -> None:
    assert not SystemLibrary(("libabsent.so.9", "libmini.so.1"), "mini1").missing(machine.env.python)
    assert SystemLibrary(("libabsent.so.9",), "absent9").missing(machine.env.python)


def test_preloads_name_files_of_the_environment_and_of_the_machine(machine: Machine) -> None:
    brought = Preload("Brought along.", file="lib/libiomp5.so")
    assert brought.needed(machine.env)
    with pytest.raises(EnvironmentFailed, match=r"lib/libiomp5.so was not found"):
        brought.apply(machine.env)
    (machine.env.root / "lib" / "libiomp5.so").touch()
    assert brought.preloads(machine.env) == (machine.env.root / "lib" / "libiomp5.so",)
    outside = Preload("The system's.", sonames=("libabsent.so.9", "libmini.so.1"))
    assert not outside.needed(machine.env)
    assert outside.preloads(machine.env) == (machine.libraries / "libmini.so.1",)


def test_a_distribution_is_found_by_its_other_name_and_follows_its_version(tmp_path: Path) -> None:
    env = Environment(tmp_path)
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    alias = Alias("why", "engine", "engine-small", "+small")
    assert not alias.needed(env)  # nothing is installed
    for version in ("1.0", "1.1"):
        for old in packages.glob("engine_small-*"):
            old.rename(packages / f"engine_small-{version}.dist-info")
        (packages / f"engine_small-{version}.dist-info").mkdir(parents=True, exist_ok=True)
        assert alias.needed(env)
        alias.apply(env)
        assert not alias.needed(env)
        code = "import importlib.metadata as m, sys; sys.path.insert(0, sys.argv[1]); print(m.version('engine'))"
        done = subprocess.run([sys.executable, "-c", code, str(packages)], capture_output=True, text=True)
        assert done.stdout == f"{version}+small\n"


def test_a_real_distribution_is_left_alone(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("engine_small-1.0", "engine-2.0"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    assert not Alias("why", "engine", "engine-small").needed(Environment(tmp_path))
