"""The wheel holds all of the package and nothing else, and README's commands are those that CI runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "tracereplay", "cli", "fixtures")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()  # a copy, since building leaves its own folders behind
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def text(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(next(n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))).decode()


def test_every_module_and_data_file_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    expected = {"tracereplay/py.typed", "tracereplay/cli/main.py"}
    for root, place in ((ROOT / "tracereplay", "tracereplay"), (ROOT / "cli", "tracereplay/cli")):
        for pattern in ("*.py", "*.toml", "*.md", "*.j2", "*.css", "*.js"):
            expected |= {f"{place}/{path.relative_to(root)}" for path in root.rglob(pattern)}
    assert expected <= set(wheel.namelist())


def test_the_demo_finds_its_fixtures_where_it_is_installed(wheel: zipfile.ZipFile) -> None:
    names = {n for n in wheel.namelist() if n.startswith("tracereplay/fixtures/")}
    for name in ("tiny-llama/config.json", "tiny-llama/model.safetensors", "tiny-llama-v0.trace/manifest.json"):
        assert f"tracereplay/fixtures/{name}" in names


def test_nothing_is_installed_beside_the_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tracereplay"}


def test_the_only_program_is_tracereplay(wheel: zipfile.ZipFile) -> None:
    entries = text(wheel, "entry_points.txt")
    programs = re.search(r"\[console_scripts\]\n(.*?)(?:\n\n|\Z)", entries, re.DOTALL)
    assert programs is not None
    assert programs[1].split() == ["tracereplay", "=", "tracereplay.cli.main:main"]
    assert "[vllm.general_plugins]\ntracereplay = tracereplay.engines.vllm.guest.plugin:register" in entries


def test_installing_it_brings_no_torch(wheel: zipfile.ZipFile) -> None:
    needed = [line for line in text(wheel, "METADATA").splitlines() if line.startswith("Requires-Dist:")]
    always = {re.split(r"[^A-Za-z0-9_-]", line.split()[1])[0] for line in needed if "extra ==" not in line}
    assert "numpy" in always
    assert not {"torch", "vllm", "transformers"} & always


def test_ci_runs_the_commands_of_the_readme() -> None:
    commands = re.findall(r"^\./setup\.sh.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 2
    script = (ROOT / ".ci" / "run").read_text()
    for part in (part for command in commands for part in command.split(" && ")):
        assert part in script
