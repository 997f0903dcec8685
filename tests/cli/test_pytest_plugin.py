"""The fixture ``replays``, in sessions of pytest's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tracereplay.trace import open_trace

pytest_plugins = "pytester"

FLAW = "model.layers.1.mlp.act_fn:scale"


@pytest.fixture
def session(pytester: pytest.Pytester, golden: Path) -> pytest.Pytester:
    """Where the golden trace lies beside the tests."""
    (pytester.path / "golden.trace").symlink_to(golden)
    return pytester


def test_a_match_passes_and_tests_share_an_engine(session: pytest.Pytester) -> None:
    session.makepyfile(
        """
        def test_upgrade(replays):
            verdict = replays("golden.trace", engine="toy")
            assert verdict.matches, verdict
            assert verdict.golden.digest

        def test_again(replays, _tracereplay_engine):
            assert replays("golden.trace", engine="toy", policy="strict").matches
            assert _tracereplay_engine.starts == 1
        """
    )
    session.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)


def test_a_divergence_fails_with_its_whole_report(session: pytest.Pytester) -> None:
    session.makepyfile(
        f"""
        def test_upgrade(replays):
            verdict = replays("golden.trace", engine="toy", settings={{"flaw": "{FLAW}"}})
            assert verdict.matches, verdict

        def test_without_a_message(replays):
            assert replays("golden.trace", engine="toy", settings={{"flaw": "{FLAW}"}}).matches
        """
    )
    result = session.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "E*AssertionError: DIVERGED*SiluAndMul computes something else*",
            "E*First divergence*",
            "E*where False = <verdict 1: DIVERGED>.matches",
            "*test_without_a_message*",
            "E*where False = <verdict 1: DIVERGED>.matches",
            "E*DIVERGED*SiluAndMul computes something else*",
        ]
    )


def test_what_is_missing_is_a_sentence(session: pytest.Pytester) -> None:
    session.makepyfile(
        """
        def test_golden(replays):
            replays("none.trace", engine="toy")

        def test_engine(replays):
            replays("golden.trace", engine="none")
        """
    )
    result = session.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["There is no golden trace *none.trace; record it with*", "There is no engine named*"]
    )
    result.stdout.no_fnmatch_line("*pytest_plugin.py:*")


def test_an_update_records_golden_anew_and_says_so(session: pytest.Pytester, golden: Path) -> None:
    (session.path / "golden.trace").unlink()
    data = session.path / "test_an_update_records_golden_anew_and_says_so"
    data.mkdir()
    golden.rename(data / "golden.trace")
    session.makepyfile(
        f"""
        def test_upgrade(replays):
            verdict = replays("golden.trace", engine="toy", settings={{"flaw": "{FLAW}"}})
            assert verdict.matches, verdict
        """
    )
    with open_trace(data / "golden.trace") as trace:
        before = trace.digest()
    session.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(failed=1)
    result = session.runpytest_inprocess("-p", "no:cacheprovider", "--tracereplay-update")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*golden.trace was recorded anew."])
    with open_trace(data / "golden.trace") as trace:
        assert trace.digest() != before
    session.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_prompts_make_a_golden_that_is_not_there(pytester: pytest.Pytester, model: Path, prompts: Path) -> None:
    pytester.makepyfile(
        f"""
        def test_upgrade(replays):
            assert replays("new.trace", engine="toy", model="{model}", prompts="{prompts}").matches
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["There is no golden trace *new.trace; record it with `pytest --tracereplay-update`*"]
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider", "--tracereplay-update").assert_outcomes(passed=1)
    assert (pytester.path / "new.trace").is_dir()
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_the_plugin_imports_nothing_heavy() -> None:
    script = (
        "import sys, tracereplay.pytest_plugin; print([n for n in ('numpy', 'rich', 'typer') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("[]", "['rich']")
