"""What the fuzzers once found, and what they begin with, replayed without atheris."""

from __future__ import annotations

from pathlib import Path

import pytest
import targets
from seeds import write_seeds
from targets import TARGETS, bounded

CORPUS = Path(__file__).parent / "corpus"
FOUND = sorted(path for path in CORPUS.glob("*/*") if path.parent.name in TARGETS)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once_is_mended(path: Path) -> None:
    bounded(TARGETS[path.parent.name])(path.read_bytes())


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_seeds_are_read_or_refused(name: str, tmp_path: Path) -> None:
    write_seeds(name, tmp_path / "seeds")
    seeds = sorted((tmp_path / "seeds").iterdir())
    assert len(seeds) > 10
    for seed in seeds:
        bounded(TARGETS[name])(seed.read_bytes())


def test_a_reader_that_is_at_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness itself: it must not pass over an error, another value, or a second lost."""

    def broken(*args: object) -> None:
        raise ZeroDivisionError

    edit = b"e" + bytes([0, 0, 0])
    TARGETS["container"](edit)
    with monkeypatch.context() as patch:
        patch.setattr(targets, "SegmentReader", broken)
        with pytest.raises(ZeroDivisionError):
            TARGETS["container"](edit)
    data, steps = targets.known()
    monkeypatch.setattr(targets, "known", lambda: (data, [steps[0], steps[0], *steps[2:]]))
    with pytest.raises(AssertionError):
        TARGETS["container"](edit)
    monkeypatch.setattr(targets, "SECONDS", 0.0)
    with pytest.raises(AssertionError, match=r"1 bytes took .* s and"):
        bounded(lambda data: sum(range(1000)) and None)(b"x")
