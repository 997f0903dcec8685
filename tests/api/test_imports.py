"""``import tracereplay`` costs nothing, and what records in an engine's environment needs only what that has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# What an engine's environment need not have: the analyst's packages, and engines that are not imported yet.
ABSENT = ("typer", "rich", "uv", "jinja2", "platformdirs", "packaging", "fsspec", "torch", "vllm", "transformers")
BLOCK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(script: str, *words: object, cwd: Path | None = None) -> str:
    command = [sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_imports_nothing_else() -> None:
    script = "import sys; before = set(sys.modules); import tracereplay; import json; " \
        "print(json.dumps(sorted(set(sys.modules) - before)))"  # fmt: skip
    found = json.loads(run(script))
    ours = {name for name in found if name.startswith("tracereplay")}
    assert ours == {"tracereplay", "tracereplay.lazily"}
    assert not {"numpy", "msgpack", "asyncio"} & set(found)


@pytest.mark.program
def test_a_program_records_itself_where_the_analysts_packages_are_not(tmp_path: Path) -> None:
    script = (
        BLOCK
        + """
from pathlib import Path
import tracereplay
from tracereplay.engines.toy.checkpoint import write_checkpoint
from tracereplay.engines.toy.library import LLM
here = Path(sys.argv[1])
write_checkpoint(here / "model")
with tracereplay.recording(here / "mine.trace") as recording:
    LLM(here / "model").generate(["Hello"], max_tokens=3)
print(recording.trace.complete, len(recording.trace))
"""
    )
    assert run(script, tmp_path).split() == ["True", "3"]


def test_the_package_is_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tracereplay", "--version"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "tracereplay")
