"""README's examples in Python run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def blocks(heading: str) -> list[str]:
    """The Python examples below a heading."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## )", README.read_text(), re.DOTALL | re.MULTILINE)
    assert section is not None
    return re.findall(r"^```python\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)


def test_the_example_in_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACEREPLAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    first, second = blocks("In Python")
    exec(compile(first, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("diverged model.layers.1.mlp.act_fn\n{")
    compile(second, "README.md", "exec")
    assert "tracereplay.recording(" in second
