"""Traces that ask for code, in every way we could think of: nothing runs, no engine starts, one sentence says why.

The engine that is registered leaves a file when it is started, and then fails: so does the code that the traces
bring along.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli_support import write
from program import Program

from tracereplay.environments.registry import Engine, register

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "fixtures"))

import make_hostile_meaning as meaning  # noqa: E402

NAMES = sorted(meaning.CASES)
REFUSED = [name for name in NAMES if meaning.CASES[name].code == 5]


@pytest.fixture
def canary(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a file appears if an engine is started or a trace's code runs."""
    file = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(file))
    monkeypatch.chdir(ROOT)
    python = write(home / "canary-python", f'#!/bin/sh\necho "an engine was started" > "{file}"\nexit 3\n')
    python.chmod(0o755)
    register(Engine("canary", python))
    return file


def trace(name: str) -> Path:
    return meaning.MEANING / f"{name}.trace"


def test_the_committed_traces_are_those_that_the_script_makes(tmp_path: Path) -> None:
    meaning.write_all(tmp_path / "made")
    made, there = (
        {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        for folder in (tmp_path / "made", meaning.MEANING)
    )
    assert made == there
    assert len(REFUSED) >= 30


@pytest.mark.parametrize("name", NAMES)
def test_replay_starts_nothing_for_it(tracereplay: Program, canary: Path, tmp_path: Path, name: str) -> None:
    code = meaning.CASES[name].code
    ended = tracereplay("replay", trace(name), "--engine", "canary", "-o", tmp_path / "out.trace")
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert all(c.isprintable() or c == "\n" for c in ended.err)
    if code == 4:  # nothing unusual is asked for: the engine may be started, and it is the canary
        return
    assert not canary.exists(), canary.read_text()
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    assert not (tmp_path / "out.trace").exists()


@pytest.mark.parametrize("name", ["trust-remote-code", "model-inside", "worker-extension-class", "sampling-bias"])
@pytest.mark.parametrize(
    "words",
    [
        ("replay", "--engine", "canary", "--mode", "rerun"),
        ("bisect", "operators", "--engine", "canary"),
        ("bisect", "settings", "--engine", "canary"),
        ("bisect", "versions", "--good", "0.31.0", "--bad", "0.32.0"),
        ("calibrate", "--engine", "canary"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_verb_starts_anything_for_it(
    tracereplay: Program, canary: Path, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    verb = words[:2] if words[0] == "bisect" else words[:1]
    work = ("--work", tmp_path / "work") if words[0] == "bisect" else ()
    ended = tracereplay(*verb, trace(name), *words[len(verb) :], *work)
    assert ended.code == 5, ended.err
    assert not canary.exists()
    assert len(ended.err.strip().splitlines()) == 1, ended.err


@pytest.mark.parametrize("mode", ["replay", "compare", "repro"])
def test_weights_are_not_read_from_inside_a_trace(
    tracereplay: Program, canary: Path, tmp_path: Path, mode: str
) -> None:
    words = {
        "replay": ("replay", trace("model-inside"), "--engine", "canary", "--mode", "isolated"),
        "compare": ("compare", trace("model-inside"), trace("model-inside"), "--oracle"),
        "repro": ("repro", trace("model-inside"), "--site", "model.norm", "--step", 0, "-o", tmp_path / "repro"),
    }[mode]
    ended = tracereplay(*words)
    assert ended.code == 5, ended.err
    assert "a model that came with it" in ended.err
    assert not canary.exists()


@pytest.mark.parametrize("name", [n for n in NAMES if meaning.CASES[n].kernel])
def test_no_reproducer_is_written_for_a_kernel_that_nobody_knows(
    tracereplay: Program, canary: Path, tmp_path: Path, name: str
) -> None:
    kernel = str(meaning.CASES[name].kernel)
    ended = tracereplay(
        "repro", trace(name), "--site", "model.norm", "--step", 0, "--kernel", kernel, "-o", tmp_path / "repro"
    )
    assert ended.code == 5, ended.err
    assert "known to be safe" in ended.err
    assert not (tmp_path / "repro").exists()


def test_everything_that_is_asked_for_is_in_one_message(tracereplay: Program, canary: Path) -> None:
    ended = tracereplay("replay", trace("all-at-once"), "--engine", "canary")
    for name in ("trust_remote_code", "worker_cls", "tokenizer", "hf_token"):
        assert f"{name}=" in ended.err
    assert "yourself if you trust it" in ended.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trust-remote-code", ("--set", "trust_remote_code=false")),
        ("worker-extension-class", ("--set", "worker_extension_cls=mine.Extension")),
        ("all-at-once", [w for k in ("trust_remote_code", "worker_cls", "tokenizer", "hf_token")
                         for w in ("--set", f"{k}=null")]),
        ("model-inside", ("--model", "fixtures/tiny-llama")),
        ("model-without-digests", ("--model", "fixtures/tiny-llama")),
        ("model-by-repository", ("--model", "fixtures/tiny-llama")),
    ],
)  # fmt: skip
def test_what_the_user_gives_takes_its_place(
    tracereplay: Program, canary: Path, name: str, words: tuple[str, ...]
) -> None:
    ended = tracereplay("replay", trace(name), "--engine", "canary", *words)
    assert ended.code == 4, ended.err  # the engine was started, and failed as it is made to
    assert canary.exists()


def test_another_setting_of_the_users_excuses_nothing(tracereplay: Program, canary: Path) -> None:
    words = ("--set", "worker_cls=mine.Worker", "--model", "fixtures/tiny-llama")
    ended = tracereplay("replay", trace("worker-extension-class"), "--engine", "canary", *words)
    assert (ended.code, canary.exists()) == (5, False)
