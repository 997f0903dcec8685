"""What the program imports: a verb's own needs, when it is called, and nothing for a list of the verbs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tracereplay.cli.verbs import VERBS, load

SCRIPT = """
import json, sys
from tracereplay.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
JUDGING = (
    "tracereplay.comparator.judging",
    "tracereplay.bisector",
    "tracereplay.calibrator",
    "tracereplay.alone.replay",
)
# What only some verbs need.
RARE = ("jinja2", "packaging", "tracereplay.environments", "tracereplay.launch", "tracereplay.report.terminal")


def loaded(*words: object) -> set[str]:
    """The modules that the program has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, words)], capture_output=True, text=True, timeout=120
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["rewind"]])
def test_no_verb_is_imported_before_it_is_called(words: list[str]) -> None:
    modules = loaded(*words)
    assert "tracereplay.cli.main" in modules
    assert not {f"tracereplay.cli.{name}" for name in VERBS} & modules
    assert not {"numpy", "tracereplay.trace", "tracereplay.comparator", *JUDGING, *RARE} & modules


@pytest.mark.parametrize("verb", ["show", "verify"])
def test_reading_a_trace_imports_nothing_that_judges_or_starts_engines(verb: str, golden: Path) -> None:
    modules = loaded(verb, golden)
    assert f"tracereplay.cli.{verb}" in modules
    assert not {*JUDGING, *RARE} & modules


def test_comparing_imports_no_templates_and_no_engines(golden: Path) -> None:
    modules = loaded("compare", golden, golden)
    assert "tracereplay.comparator.judging" in modules
    assert not {"jinja2", "packaging", "tracereplay.environments", "tracereplay.bisector"} & modules


@pytest.mark.parametrize("name", VERBS)
def test_the_list_says_what_a_verbs_own_help_begins_with(name: str) -> None:
    assert VERBS[name] == " ".join(load(name).help.split("\n\n")[0].split())
