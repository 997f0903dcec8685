"""A recording for a recipient, from the command line: every verb works with its key, and none without."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest
from cli_support import write
from program import Program

from tracereplay.trace import sealed


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each run of the program has only the keys that it is given, as a process of its own has."""
    forget(monkeypatch)
    yield
    os.environ.pop(sealed.IDENTITY, None)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_keys", sealed._Keys())
    os.environ.pop(sealed.IDENTITY, None)


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    return write(tmp_path / "identity", f"{pyrage.x25519.Identity.generate()}\n")


@pytest.fixture
def recipient(identity: Path) -> str:
    return str(pyrage.x25519.Identity.from_str(identity.read_text().strip()).to_public())


@pytest.fixture
def closed(
    tracereplay: Program,
    model: Path,
    prompts: Path,
    tmp_path: Path,
    recipient: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    out = tmp_path / "closed.trace"
    words = ("--engine", "toy", "--model", model, "--prompts", prompts, "-o", out)
    ended = tracereplay("record", *words, "--encrypt-to", recipient)
    assert ended.code == 0, ended.err
    assert "Recorded" in ended.err
    forget(monkeypatch)
    return out


def words_of(verb: str, trace: Path, out: Path) -> list[object]:
    return {
        "show": ["show", trace],
        "verify": ["verify", trace],
        "compare": ["compare", trace, trace],
        "replay": ["replay", trace, "--engine", "toy", "-o", out / "candidate.trace"],
        "pack": ["pack", trace, "-o", out / "packed.trz"],
        "export": ["export", trace, "-o", out / "exported"],
    }[verb]


@pytest.mark.parametrize("verb", ["show", "verify", "compare", "replay", "pack", "export"])
def test_every_verb_works_with_the_key_and_says_that_it_lacks_it(
    tracereplay: Program, closed: Path, identity: Path, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_of(verb, closed, tmp_path)
    ended = tracereplay(*words)
    assert ended.code == 2
    assert ended.err.split() == (
        f"{closed}/manifest.json is encrypted; give the file with the key that opens it: --identity FILE.".split()
    )
    other = write(tmp_path / "other", f"{pyrage.x25519.Identity.generate()}\n")
    ended = tracereplay(*words, "--identity", other)
    assert ended.code == 2
    assert "encrypted for somebody else" in ended.err
    forget(monkeypatch)
    ended = tracereplay(*words, "--identity", identity)
    assert ended.code == 0, ended.err


def test_what_a_replay_makes_of_it_is_encrypted_too(
    tracereplay: Program, closed: Path, identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_of("replay", closed, tmp_path)
    assert tracereplay(*words, f"--identity={identity}").code == 0
    forget(monkeypatch)
    candidate = tmp_path / "candidate.trace"
    ended = tracereplay("show", candidate)
    assert (ended.code, "--identity" in ended.err) == (2, True)
    assert {path.name for path in candidate.iterdir()} == {
        "manifest.json", "rerun-rank0.seg", "injected-rank0.seg",
    }  # fmt: skip
    for path in candidate.iterdir():
        assert b"RMSNorm" not in path.read_bytes()
    assert tracereplay("compare", closed, candidate, "--identity", identity).code == 0


@pytest.mark.parametrize("text", ["age1nothing", "AGE-SECRET-KEY-1NOTHING", "identity.txt"])
def test_no_recipient_is_told_before_anything_starts(
    tracereplay: Program, model: Path, prompts: Path, tmp_path: Path, text: str
) -> None:
    out = tmp_path / "t.trace"
    words = ("--engine", "toy", "--model", model, "--prompts", prompts, "-o", out)
    ended = tracereplay("record", *words, "--encrypt-to", text)
    assert ended.code == 2
    assert "give the public key" in ended.err
    assert not out.exists()
    assert tracereplay("record", "-o", out, "--encrypt-to", text, "--", "touch", tmp_path / "ran").code == 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("words", [["--identity"], ["--identity", "nowhere"], ["--identity="]])
def test_no_identity_is_told(tracereplay: Program, closed: Path, words: list[str]) -> None:
    ended = tracereplay("show", closed, *words)
    assert ended.code == 2
    assert ended.err.count("\n") == 1


def test_a_trace_is_packed_for_a_recipient(
    tracereplay: Program,
    golden: Path,
    identity: Path,
    recipient: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "closed.pack"
    assert tracereplay("pack", golden, "-o", out, "--encrypt-to", recipient).code == 0
    forget(monkeypatch)
    assert b"RMSNorm" not in out.read_bytes()
    assert tracereplay("show", out).code == 2
    ended = tracereplay("compare", golden, out, "--strict", "--identity", identity)
    assert ended.code == 0, ended.err
    assert tracereplay("verify", out, "--identity", identity).code == 0
