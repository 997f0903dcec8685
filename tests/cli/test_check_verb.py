"""``check`` from end to end, with the toy engine: green and red runs, goldens that do not fit, and updates."""

from __future__ import annotations

import doctest
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import make_model, write
from junitparser import JUnitXml
from program import Ended, Program

import tracereplay as package
from tracereplay.checks.lock import read_lock
from tracereplay.trace import open_trace

FLAW = 'settings = {flaw = "model.layers.1.mlp.act_fn:scale"}'
Run = Callable[..., Ended]


@pytest.fixture
def run(tracereplay: Program, golden: Path, tmp_path: Path) -> Run:
    """Runs checks of the golden trace under the toy; each row is what it says beside that."""

    def checked(*rows: str, words: tuple[object, ...] = ()) -> Ended:
        tables = [f'[[check]]\ngolden = "{golden.name}"\nengine = "toy"\n{row}\n' for row in rows]
        return tracereplay("check", write(tmp_path / "checks.toml", "\n".join(tables)), *words)

    return checked


def test_rows_that_are_as_expected_end_with_zero_and_share_an_engine(run: Run) -> None:
    ended = run('name = "plain"', 'name = "again"\nmode = "rerun"', f'name = "red"\nexpect = "diverged"\n{FLAW}')
    assert ended.code == 0, ended.err
    assert "3 checks: all as expected" in ended.out
    assert [line.split()[0] for line in ended.out.splitlines()[1:4]] == ["plain", "again", "red"]
    assert ended.err.count("Starting the engine toy") == 2


def test_a_row_that_diverges_is_explained(run: Run) -> None:
    ended = run('name = "plain"', f'name = "red"\n{FLAW}')
    assert ended.code == 1
    assert "SiluAndMul computes something else than in golden" in ended.out
    assert "where: model.layers.1.mlp.act_fn" in ended.out
    assert "Next: tracereplay replay" in ended.out
    assert "2 checks: 1 not as expected" in ended.out


def test_an_unexpected_match_or_another_cause_counts_as_diverged(run: Run) -> None:
    assert run('expect = "diverged"').code == 1
    assert run(f'expect = "diverged"\ncause = "rounding"\n{FLAW}').code == 1
    assert run(f'expect = "diverged"\ncause = "operator"\n{FLAW}').code == 0


def test_a_row_that_fails_leaves_the_others_alone(run: Run) -> None:
    ended = run('name = "wrong"\nsettings = {no_such_argument = 1}', 'name = "plain"')
    assert ended.code == 2
    assert "no_such_argument" in ended.out
    assert "plain" in ended.out
    assert "2 checks: 1 not as expected" in ended.out


def test_an_engine_that_does_not_start_is_not_started_again(run: Run) -> None:
    dies = 'settings = {dies = "loading"}'
    ended = run(f'name = "a"\n{dies}', f'name = "b"\nmode = "rerun"\n{dies}', 'name = "c"')
    assert ended.code == 4
    assert ended.err.count("Starting the engine toy") == 2
    assert ended.out.count("cannot load its model") >= 2
    assert "\x1b" not in ended.out
    assert "3 checks: 2 not as expected" in ended.out


def test_an_engine_that_dies_is_started_again_for_the_next_row(run: Run) -> None:
    dies = 'settings = {dies = "generating"}'
    ended = run(f'name = "a"\n{dies}', f'name = "b"\n{dies}')
    assert ended.code == 4
    assert ended.err.count("Starting the engine toy") == 2
    assert ended.out.count("| the toy engine ran out of luck") == 2


def test_a_golden_that_cannot_be_read_is_worse_than_an_engine_that_fails(
    tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    write(tmp_path / "none.trace", "nothing")
    rows = f'[[check]]\nengine = "toy"\ngolden = "{golden.name}"\nsettings = {{dies = "loading"}}'
    none = '[[check]]\nengine = "toy"\ngolden = "none.trace"'
    ended = tracereplay("check", write(tmp_path / "checks.toml", f"{rows}\n{none}"))
    assert ended.code == 5
    assert "is not a trace" in ended.out
    assert "2 checks: 2 not as expected" in ended.out


def test_other_weights_are_inconclusive_before_an_engine_starts(run: Run, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", "weights of another")
    ended = run(f'name = "a"\nmodel = "{other.name}"')
    assert ended.code == 3
    assert "weights" in ended.out
    assert "Starting" not in ended.err
    assert run(f'name = "a"\nmodel = "{other.name}"\nexpect = "inconclusive"').code == 0


def test_an_update_that_fails_leaves_golden_and_lock_alone(run: Run, golden: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    ended = run('settings = {dies = "generating"}', words=("--update", "--reason", "x"))
    assert ended.code == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "checks.toml"])
    assert run('name = "a"').code == 0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('name = "a"\ngolden = "none.trace"', "'golden' of the row 'a' (line 1 of"),
        ('name = "a"\nengine = "none"', "'engine' of the row 'a' (line 1 of"),
        ('name = "a"\npolicy = "none.toml"', "'policy' of the row 'a' (line 1 of"),
        ('name = "a"\nmodel = "none"', "'model' of the row 'a' (line 1 of"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(
    tracereplay: Program, golden: Path, tmp_path: Path, row: str, said: str
) -> None:
    given = {"golden": f'"{golden}"', "engine": '"toy"', **dict(line.split(" = ") for line in row.splitlines())}
    text = "[[check]]\n" + "\n".join(f"{key} = {value}" for key, value in given.items())
    ended = tracereplay("check", write(tmp_path / "checks.toml", text))
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert "Starting" not in ended.err


def test_another_golden_than_the_digests_is_inconclusive(run: Run, golden: Path) -> None:
    with open_trace(golden) as trace:
        digest = trace.digest()
    assert run(f'digest = "{digest}"').code == 0
    ended = run(f'digest = "{"0" * 32}"')
    assert ended.code == 3
    assert "it is another trace" in ended.out
    assert "Starting the engine" not in ended.err


def test_a_golden_for_another_device_or_other_weights_is_inconclusive(
    run: Run, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracereplay.checks.golden.device_class", lambda device: next(devices))
    devices = iter(["cpu", "cuda"])
    ended = run('name = "a"')
    assert ended.code == 3
    assert "was recorded on cpu, and the engine computes on cuda" in ended.out
    devices = iter(["cpu", "cuda"])
    assert run('accept = ["device"]').code == 0


def test_an_update_needs_a_reason_and_says_what_it_replaced(
    run: Run, tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    ended = run(FLAW, words=("--update",))
    assert ended.code == 2
    assert "is replaced for a reason" in ended.err
    with open_trace(golden) as trace:
        before = trace.digest()
    ended = run(f'name = "a"\n{FLAW}', words=("--update", "--reason", "the new scale is right"))
    assert ended.code == 0, ended.err
    with open_trace(golden) as trace:
        assert trace.digest() != before
        assert f"its digest is {trace.digest()}, and was {before}." in ended.err
        locked = read_lock(tmp_path / "checks.lock")["a"]
        assert (locked.golden, locked.digest) == (golden.name, trace.digest())
        assert (locked.weights, locked.device, locked.format) == (trace.run.weights, "cpu", 2)
    assert locked.reason == "the new scale is right"
    assert set(locked.versions) == {"toy", "tracereplay"}
    assert run(f'name = "a"\n{FLAW}').code == 0  # what was a fault is golden now


def test_what_was_not_accepted_is_not_used(
    run: Run, tracereplay: Program, golden: Path, model: Path, prompts: Path
) -> None:
    assert run('name = "a"', words=("--update", "--reason", "first")).code == 0
    ended = run(f'name = "a"\n{FLAW}')  # the row was changed, and not what it is held to
    assert ended.code == 3
    assert "was accepted with settings unknown, and the row has flaw=" in ended.out
    assert run(f'name = "a"\naccept = ["settings"]\n{FLAW}').code == 1
    words = ("--engine", "toy", "--model", model, "--prompts", prompts, "-o", golden, "--force", "--max-tokens", 2)
    assert tracereplay("record", *words, "--set", "noise=0.5").code == 0
    ended = run('name = "a"')
    assert ended.code == 3
    assert "and checks.lock has" in ended.out


def test_prompts_make_a_golden_that_is_not_there(
    tracereplay: Program, model: Path, prompts: Path, tmp_path: Path
) -> None:
    row = f'golden = "new.pack", engine = "toy", model = "{model}", prompts = "{prompts}", max_tokens = 3'
    file = write(tmp_path / "checks.toml", f"check = [{{{row}}}]")
    ended = tracereplay("check", file)
    assert (ended.code, "or give the row 'prompts' and use tracereplay check --update" in ended.err) == (2, True)
    ended = tracereplay("check", file, "--update", "--reason", "the first one")
    assert ended.code == 0, ended.err
    assert "new toy: " in ended.err
    with open_trace(tmp_path / "new.pack") as trace:
        assert (trace.packed, len(trace.run.prompts), trace.run.prompts[1].token_ids) == (True, 2, tuple(b"hello"))
    assert tracereplay("check", file).code == 0
    prompts.unlink()
    ended = tracereplay("check", file)
    assert (ended.code, "'prompts' of the row 'new toy'" in ended.err) == (2, True)


def test_rows_with_one_golden_are_not_updated_at_once(run: Run, golden: Path) -> None:
    rows = ('name = "a"', f'name = "b"\n{FLAW}')
    ended = run(*rows, words=("--update", "--reason", "x"))
    assert ended.code == 2
    assert "say with --only whose engine is to record it" in ended.err
    assert run(*rows, words=("--update", "--reason", "x", "--only", "a")).code == 0


def test_a_packed_golden_stays_packed(run: Run, tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    packed = tmp_path / "golden.pack"
    assert tracereplay("pack", golden, "-o", packed).code == 0
    row = 'name = "a"\nengine = "toy"'
    text = write(tmp_path / "checks.toml", f'[[check]]\ngolden = "golden.pack"\n{row}')
    assert tracereplay("check", text).code == 0
    assert tracereplay("check", text, "--update", "--reason", "x").code == 0
    assert packed.is_file()
    assert tracereplay("check", text).code == 0


def test_traces_and_verdicts_are_kept(run: Run, tmp_path: Path, tracereplay: Program) -> None:
    ended = run('name = "a/../b"', f'name = "red"\n{FLAW}', words=("--keep", tmp_path / "kept"))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "1-a-..-b.json", "1-a-..-b.trace", "2-red.json", "2-red.trace",
    ]  # fmt: skip
    assert f"Next: tracereplay report {tmp_path / 'kept' / '2-red.json'}" in ended.out
    assert "DIVERGED" in tracereplay("report", tmp_path / "kept" / "2-red.json").out
    assert run('name = "a"', words=("--keep", tmp_path / "kept")).code == 2


def test_each_form_goes_to_stdout_or_a_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    rows = (f'name = "red"\n{FLAW}',)
    ended = run(*rows, words=("--format", "junit"))
    assert (ended.code, next(iter(JUnitXml.fromstring(ended.out.encode()))).failures) == (1, 1)
    assert json.loads(run(*rows, words=("--format", "json")).out)["exit_code"] == 1
    assert run(*rows, words=("--format", "github")).out.startswith("::error file=")
    assert summary.read_text().startswith("<!-- tracereplay check -->\n### ❌ tracereplay: 1 check")
    out = tmp_path / "report.xml"
    for _ in range(2):  # the second replaces the first
        ended = run(*rows, words=("--format", "junit", "-o", out))
        assert "1 check: not as expected" in ended.out
        assert out.read_text().startswith("<?xml")
    assert run(*rows, words=("--format", "markdown", "-o", out)).code == 2


def test_a_perfetto_trace_goes_to_a_file(run: Run, tmp_path: Path) -> None:
    ended = run('name = "a"', words=("--format", "perfetto"))
    assert (ended.code, "say with -o FILE where it goes" in ended.err) == (2, True)
    out = tmp_path / "trace.pftrace"
    for _ in range(2):
        ended = run(f'name = "red"\n{FLAW}', words=("--format", "perfetto", "-o", out))
        assert (ended.code, out.stat().st_size > 1_000) == (1, True), ended.err
    assert "Next: tracereplay replay" in ended.out  # nothing was kept that could be shown


def test_a_golden_at_a_url_is_fetched_once(run: Run, tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    assert tracereplay("pack", golden, "-o", tmp_path / "golden.pack").code == 0
    fsspec.filesystem("memory").pipe("/g/golden.pack", (tmp_path / "golden.pack").read_bytes())
    text = write(tmp_path / "checks.toml", '[[check]]\ngolden = "memory://g/golden.pack"\nengine = "toy"')
    ended = tracereplay("check", text)
    assert ended.code == 0, ended.out
    assert ended.err.count("Fetching") == 1
    assert "Fetching" not in tracereplay("check", text).err


def test_python_runs_checks_as_its_example_says(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"tracereplay": package, "Path": Path}
    (example,) = doctest.DocTestFinder(recurse=False).find(package.check, "check", globs=names)
    assert doctest.DocTestRunner().run(example) == (0, 4)
