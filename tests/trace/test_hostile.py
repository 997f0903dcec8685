"""Traces from strangers (fixtures/hostile/): refused with one sentence or shown without harm, at little cost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"
sys.path.insert(0, str(FIXTURES))

import make_hostile  # noqa: E402

HOSTILE = FIXTURES / "hostile"
READER = Path(__file__).parent / "hostile_reader.py"
SECONDS, BYTES = 1.0, 200 << 20

REFUSED = sorted(path.name for path in (HOSTILE / "refused").iterdir() if not path.name.startswith("honest-"))
SHOWN = sorted(path.name for path in (HOSTILE / "shown").iterdir())
LIVE = sorted(make_hostile.LIVE)

Opened = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """What came of opening each trace, by its name; two processes, since that is what CI has cores for."""
    live = tmp_path_factory.mktemp("live")
    make_hostile.write_all(live, live_ones=True)
    paths = [HOSTILE / "refused" / name for name in REFUSED]
    paths += [HOSTILE / "shown" / name for name in SHOWN] + [live / "refused" / name for name in LIVE]
    command = [sys.executable, str(READER), str(HOSTILE / "shown" / make_hostile.GOLDEN)]
    halves = [
        subprocess.Popen([*command, *map(str, paths[i::2])], stdout=subprocess.PIPE, text=True) for i in range(2)
    ]
    lines = [line for half in halves for line in half.communicate(timeout=300)[0].splitlines()]
    assert [half.returncode for half in halves] == [0, 0]
    return {Path(found["path"]).name: found for found in map(json.loads, lines)}


def check_cost(found: Mapping[str, Any]) -> None:
    """Nothing leaked, took long or took much memory, and no terminal was spoken to."""
    assert "died" not in found, f"the reader was ended by signal {found['died']}"
    for name, stage in found["stages"].items():
        assert stage["raised"] != "LEAK", stage["text"]
        assert stage["seconds"] < SECONDS, name
        assert len(stage["text"]) < 1200
    for name, verb in found["verbs"].items():
        assert verb["code"] in (0, 1, 2, 3, 5), (name, verb)
        assert verb["seconds"] < SECONDS, name
        assert all(c.isprintable() or c == "\n" for c in verb["out"] + verb["err"]), name
        assert "Traceback" not in verb["err"]
        if verb["code"] == 5 and not name.startswith("verify"):  # which reports damage, on stdout
            assert len(verb["err"].splitlines()) == 1, verb["err"]
    assert found["grown"] < BYTES


@pytest.mark.parametrize("name", [*REFUSED, *LIVE])
def test_a_hostile_trace_is_refused_with_one_sentence(opened: Opened, name: str) -> None:
    found = opened[name]
    check_cost(found)
    raised = [stage["text"] for stage in found["stages"].values() if stage["raised"]]
    assert raised or "damaged" in found["stages"]["verify"]["result"]
    assert all(text.endswith((".", "...")) for text in raised), raised
    if found["stages"]["open"]["raised"]:
        assert found["verbs"]["show"]["code"] == 5


@pytest.mark.parametrize("name", SHOWN)
def test_an_odd_trace_is_shown_without_harm(opened: Opened, name: str) -> None:
    found = opened[name]
    check_cost(found)
    assert [stage["text"] for stage in found["stages"].values() if stage["raised"]] == []
    assert "damaged" not in found["stages"]["verify"]["result"]
    assert found["verbs"]["show"]["code"] == 0


def test_text_from_a_trace_is_shown_without_markup(opened: Opened) -> None:
    shown = opened["escapes-in-the-manifest"]["verbs"]["show"]["out"]
    assert "\\x1b]0;gotcha\\x07" in shown
    assert "[bold]x" in shown
    assert "\\u202e" in shown


def test_the_committed_files_match_those_the_script_writes(tmp_path: Path) -> None:
    made = {path.name for kind in ("refused", "shown") for path in (HOSTILE / kind).iterdir()}
    assert made == {*make_hostile.REFUSED, *make_hostile.SHOWN}
    kinds = HOSTILE / "refused", HOSTILE / "shown"
    files = [path for kind in kinds for path in kind.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 520_000
