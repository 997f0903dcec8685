"""README.md of a bundle: a maintainer's form, in which nothing of a trace is markup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tracereplay.bundle.manifest import Manifest, shown_by
from tracereplay.bundle.readme import Told, readme
from tracereplay.comparator import compare_traces
from tracereplay.engines import toy
from tracereplay.engines.known import FAMILIES
from tracereplay.engines.toy import Flaw
from tracereplay.trace import open_trace
from tracereplay.verdict import SettingDifference

HOSTILE = "```\n<script>alert(1)</script> ![x](http://evil.example/x) \u202e\x1b[31m | `a` **b**"


@pytest.fixture
def told(tmp_path: Path) -> Told:
    golden = open_trace(toy.record(toy.workload(), tmp_path / "golden.trace"))
    flaw = Flaw("model.layers.1.mlp.act_fn", "scale")
    candidate = open_trace(toy.replay(Path(str(golden.path)), tmp_path / "candidate.trace", flaw=flaw))
    return Told(golden, candidate, compare_traces(golden, candidate), ["report.html", "golden.pack"])


def manifest(told: Told) -> Manifest:
    shown = shown_by(told.verdict)
    return Manifest(
        "0.1.0",
        "2026-01-01",
        None,
        shown,
        shown,
        {"whole": HOSTILE, "digest": "0" * 32},
        (HOSTILE,),
        (HOSTILE,),
        (HOSTILE,),
    )


def outside_of_code(text: str) -> str:
    """The text without fenced blocks; raises if one does not end."""
    kept: list[str] = []
    fence = None
    for line in text.splitlines():
        mark = line[: len(line) - len(line.lstrip("`"))]
        if fence is None and len(mark) >= 3:
            fence = mark
        elif fence is not None and line == fence:
            fence = None
        elif fence is None:
            kept.append(line)
    assert fence is None
    return "\n".join(kept)


def test_nothing_of_a_trace_is_markup(told: Told) -> None:
    first = told.verdict.first_divergence
    assert first is not None
    operators = tuple(replace(found, site=HOSTILE) for found in told.verdict.operators)
    settings = (SettingDifference("dtype", HOSTILE, "x", "numeric"),)
    verdict = replace(
        told.verdict, first_divergence=replace(first, site=HOSTILE, operator=HOSTILE), operators=operators,
        settings_diff=settings,
    )  # fmt: skip
    hostile = replace(told, verdict=verdict)
    text = readme(hostile, manifest(hostile))
    assert text.count("alert") >= 5
    assert not any(ord(c) < 32 and c != "\n" for c in text)
    assert "\u202e" not in text
    outside = outside_of_code(text)
    for line in outside.splitlines():
        bare = line.split("`")[::2] if line.count("`") % 2 == 0 else [line]
        assert not any("<script" in part.replace("\\<", "") for part in bare), line
        assert not any("![x](" in part for part in bare), line


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_each_family_has_a_form_that_can_be_filled(
    told: Told, family: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracereplay.bundle.readme.family_of", lambda engine: family)
    text = readme(told, manifest(told))
    assert "model.layers.1.mlp.act_fn" in outside_of_code(text) or "model.layers.1.mlp.act_fn" in text
    assert "tracereplay bundle --check bug.zip" in text
    assert "| `golden.pack` | the golden trace |" in text
    assert "{{" not in text
