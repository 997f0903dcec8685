"""Nothing of the user's is deleted or overwritten: what each verb replaces, when, and what it refuses to."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import write
from program import Ended, Program
from test_interrupt import PROGRAM, wait_until

from tracereplay.trace import open_trace

WEBSITE = '{"name": "web", "short_name": "app", "icons": []}'


def tree(path: Path) -> dict[str, bytes]:
    """All files under a path."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def website(path: Path) -> Path:
    """A web application's source, which has a manifest.json."""
    (path / "src").mkdir(parents=True)
    write(path / "manifest.json", WEBSITE)
    write(path / "src" / "index.js", "years of work")
    return path


@pytest.fixture
def record(tracereplay: Program, model: Path, prompts: Path) -> Callable[..., Ended]:
    def run(out: Path, *words: object) -> Ended:
        common = ("--engine", "toy", "--model", model, "--prompts", prompts, "-o", out)
        return tracereplay("record", *common, *words)

    return run


# -- traces ---------------------------------------------------------------------------------------------------


def test_a_folder_that_happens_to_hold_a_manifest_is_kept_by_every_verb(
    tracereplay: Program, record: Callable[..., Ended], golden: Path, tmp_path: Path
) -> None:
    out = website(tmp_path / "app")
    before = tree(out)
    for ended in (
        record(out, "--force"),
        tracereplay("record", "-o", out, "--force", "--", sys.executable, "-c", "pass"),
        tracereplay("replay", golden, "--engine", "toy", "-o", out, "--force"),
        tracereplay("replay", golden, "--engine", "toy", "--mode", "isolated", "-o", out, "--force"),
        tracereplay("pack", golden, "-o", out, "--force"),
        tracereplay("demo", "--engine", "toy", "-o", out, "--force", "--json", tmp_path / "v.json"),
    ):
        assert (ended.code, "it is not replaced" in ended.err) == (2, True), ended.err
        assert "Starting" not in ended.err
    assert tree(out) == before


def test_the_golden_trace_that_is_being_replayed_is_kept(
    tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    before = tree(golden)
    (tmp_path / "link").symlink_to(golden)
    for given, out in ((golden, golden), (tmp_path / "link", golden), (golden, tmp_path / "link")):
        for mode in ("injected", "isolated"):
            words = ("replay", given, "--engine", "toy", "--mode", mode, "-o", out, "--force")
            ended = tracereplay(*words)
            assert (ended.code, "is read by this command, so it is not replaced" in ended.err) == (2, True), (
                ended.err
            )
    assert tree(golden) == before


def test_a_plain_file_is_kept_by_pack(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    out = write(tmp_path / "thesis.txt", "years of work")
    ended = tracereplay("pack", golden, "-o", out, "--force")
    assert (ended.code, "is a file that is not a trace, so it is not replaced" in ended.err) == (2, True)
    ended = tracereplay("pack", golden, "-o", golden, "--force")
    assert (ended.code, "is read by this command" in ended.err) == (2, True)
    assert out.read_text() == "years of work"
    assert open_trace(golden).complete


def test_demo_replaces_a_trace_only_when_told_to(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    before = tree(golden)
    ended = tracereplay("demo", "--engine", "toy", "-o", golden, "--json", tmp_path / "v.json")
    assert (ended.code, "already exists; give another path, or --force" in ended.err) == (2, True)
    assert tree(golden) == before


@pytest.mark.parametrize("how", ["dies=loading", "dies=generating"])
def test_a_recording_that_fails_leaves_the_old_trace_in_place(
    record: Callable[..., Ended], golden: Path, how: str
) -> None:
    before, beside = tree(golden), set(golden.parent.iterdir())
    ended = record(golden, "--force", "--set", how)
    assert ended.code == 4
    assert tree(golden) == before
    new = set(golden.parent.iterdir()) - beside
    if how == "dies=loading":
        assert not new  # it holds nothing
    else:
        (partial,) = new
        assert f"What was finished is in {partial}; {golden} is unchanged." in ended.err
        assert open_trace(partial).steps("record")
    assert record(golden, "--force").code == 0
    assert open_trace(golden).complete
    assert set(golden.parent.iterdir()) == beside | new


def test_a_recording_that_is_killed_leaves_both_traces(
    golden: Path, model: Path, prompts: Path, tmp_path: Path
) -> None:
    before, beside, hangs = tree(golden), set(golden.parent.iterdir()), tmp_path / "pids"
    words = ["record", "--engine", "toy", "--model", model, "--prompts", prompts, "-o", golden, "--force"]
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words), "--set", f"hangs={hangs}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(hangs.exists)
    program.kill()
    _, err = program.communicate(timeout=60)
    engine, worker = map(int, hangs.read_text().split())
    for pid in (worker, engine):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert tree(golden) == before
    (partial,) = set(golden.parent.iterdir()) - beside - {hangs}
    assert str(partial) in err  # it was said at the start
    assert open_trace(partial).steps("record")


def test_a_new_recording_is_made_in_its_place_from_the_start(
    record: Callable[..., Ended], tmp_path: Path, model: Path, prompts: Path
) -> None:
    ended = record(tmp_path / "out.trace", "--set", "dies=generating")
    assert ended.code == 4
    assert open_trace(tmp_path / "out.trace").steps("record")
    assert not list(tmp_path.glob(".out*"))


# As in test_verbs: a command that leaves the segment that a worker would have written.
COMMAND = """
import os, pathlib, sys
name = "record-rank0.seg"
data = (pathlib.Path(sys.argv[1]) / name).read_bytes()
(pathlib.Path(os.environ["TRACEREPLAY_RECORD"]) / name).write_bytes(data[: int(len(data) * float(sys.argv[2]))])
"""


def test_a_command_replaces_a_trace_only_with_a_complete_one(
    tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(golden, tmp_path / "there" / "server.trace"))
    before = tree(out)
    words = ("record", "-o", out, "--force", "--", sys.executable, "-c")
    ended = tracereplay(*words, COMMAND, golden, 0.7)
    (partial,) = set(out.parent.iterdir()) - {out}
    assert (ended.code, f"it stays at {partial}" in ended.err) == (4, True), ended.err
    assert f"INCOMPLETE: {partial}" in ended.err
    assert tree(out) == before
    assert tracereplay(*words, "pass").code == 2
    assert set(out.parent.iterdir()) == {out, partial}  # what held nothing is gone
    ended = tracereplay(*words, COMMAND, golden, 1)
    assert (ended.code, tree(out) == before) == (0, False)
    assert open_trace(out).complete


def test_what_failed_to_begin_is_not_in_the_way_of_the_next_try(
    tracereplay: Program, record: Callable[..., Ended], golden: Path, tmp_path: Path
) -> None:
    out = tmp_path / "next.trace"
    for ended in (
        record(out, "--set", "enforce_eagre=true"),
        record(out, "--set", "dies=loading"),
        record(out, "--set", "dies=loading", "--with-weights"),
        tracereplay("replay", golden, "--engine", "toy", "--set", "dies=loading", "-o", out),
        tracereplay("record", "-o", out, "--", sys.executable, "-c", "pass"),
        tracereplay("record", "-o", out, "--", "no-such-program"),
    ):
        assert ended.code in (2, 4), ended.err
        assert not out.exists(), ended.err


def test_a_work_folder_keeps_what_is_not_the_bisections(
    tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    for kind in ("settings", "operators"):
        words = ("bisect", kind, golden, "--engine", "toy", "--set", "rounding=twice", "--strict", "--work", work)
        write_journal_of(tracereplay(*words, "--max-starts" if kind == "settings" else "--max-passes", 1), work)
        before = tree(website(work / "trial.trace"))
        ended = tracereplay(*words)
        assert (ended.code, "trial.trace is not certain to be a trace" in ended.err) == (2, True), ended.err
        assert tree(work / "trial.trace") == before
        shutil.rmtree(work)


def write_journal_of(ended: Ended, work: Path) -> None:
    """The work folder is that of a bisection that was begun."""
    assert ended.code in (0, 1, 3), ended.err
    assert (work / "journal.jsonl").exists()


def test_a_bisection_keeps_a_golden_trace_that_lies_in_its_work_folder(
    tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    write(work / "journal.jsonl", "")
    before = tree(golden)
    shutil.move(golden, work / "candidate.trace")
    ended = tracereplay("bisect", "operators", work / "candidate.trace", "--engine", "toy", "--work", work)
    assert ended.code == 2, ended.err
    assert tree(work / "candidate.trace") == before


# -- other files --------------------------------------------------------------------------------------------


def strangers(tmp_path: Path, golden: Path, prompts: Path) -> list[Path]:
    """Files that none of the verbs wrote as what it writes now."""
    return [
        write(tmp_path / "thesis.txt", "years of work"), prompts, golden / "manifest.json",
        golden / "record-rank0.seg", write(tmp_path / "list.json", "[1]"),
        write(tmp_path / "engine.json", '{"schema": 1, "name": "v1"}'),
    ]  # fmt: skip


def test_json_replaces_verdicts_only(tracereplay: Program, golden: Path, prompts: Path, tmp_path: Path) -> None:
    for path in strangers(tmp_path, golden, prompts):
        before = path.read_bytes()
        for words in (
            ("compare", golden, golden),
            ("replay", golden, "--engine", "toy"),
            ("logprobs", golden, golden),
            ("bisect", "operators", golden, "--engine", "toy"),
            ("bisect", "settings", golden, "--engine", "toy"),
            ("bisect", "versions", golden, "--good", "1", "--bad", "2"),
            ("demo", "--engine", "toy"),
        ):
            ended = tracereplay(*words, "--json", path)
            assert (ended.code, "is not a verdict, so it is not replaced" in ended.err) == (2, True), ended.err
            assert "Starting" not in ended.err
        assert path.read_bytes() == before
    verdict = write(tmp_path / "verdict.json", "")
    for words in (("compare", golden, golden), ("compare", golden, golden), ("logprobs", golden, golden)):
        assert tracereplay(*words, "--json", verdict).code == 0
    assert "rollout" in json.loads(verdict.read_text())


def test_a_log_is_continued_and_nothing_else_is_written_to(
    tracereplay: Program, record: Callable[..., Ended], golden: Path, prompts: Path, tmp_path: Path
) -> None:
    for path in strangers(tmp_path, golden, prompts):
        before = path.read_bytes()
        for ended in (
            record(tmp_path / "out.trace", "--log", path),
            tracereplay("replay", golden, "--engine", "toy", "--log", path),
            tracereplay("bisect", "settings", golden, "--engine", "toy", "--log", path),
            tracereplay("calibrate", golden, "--engine", "toy", "--log", path),
        ):
            assert (ended.code, "is not an engine log, so it is not replaced" in ended.err) == (2, True)
        assert path.read_bytes() == before
    log = tmp_path / "engine.log"
    first = record(tmp_path / "a.trace", "--set", "dies=generating", "--log", log)
    again = record(tmp_path / "b.trace", "--set", "dies=loading", "--log", log)
    text = log.read_text()
    assert text.count("# tracereplay: the engine toy, started 2") == 2
    assert text.index("out of luck") < text.index("cannot load its model")
    assert "out of luck" in first.err
    assert "out of luck" not in again.err  # the last lines are those of this start
    assert "# tracereplay" not in first.err + again.err


def test_observing_the_observer_keeps_both_engines_words(record: Callable[..., Ended], tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    assert record(tmp_path / "a.trace", "--check-observer", "--log", log).code == 0
    assert log.read_text().count("# tracereplay: the engine toy, started") == 2


def test_two_outputs_are_two_files(
    tracereplay: Program, record: Callable[..., Ended], golden: Path, tmp_path: Path
) -> None:
    file = tmp_path / "x"
    (tmp_path / "same").symlink_to(file)
    for words in (
        ("replay", golden, "--engine", "toy", "--json", file, "--log", tmp_path / "same"),
        ("bisect", "settings", golden, "--engine", "toy", "--json", file, "--log", file),
        ("calibrate", golden, "--engine", "toy", "-o", file, "--log", file),
        ("export", golden, "-o", file, "--calls", file),
    ):
        ended = tracereplay(*words)
        assert (ended.code, "name the same file" in ended.err) == (2, True), ended.err
        assert not file.exists()


def test_calibrate_replaces_policies_of_its_own_only(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    words = ("calibrate", golden, "--engine", "toy", "--vary", "repeat", "-o")
    mine = '[[rule]]\nsite = "*"\nignore = true\n'
    for text in ("years of work", "", "# notes\n", mine, '[project]\nname = "x"\n'):
        out = write(tmp_path / "policy.toml", text)
        assert tracereplay(*words, out).code == 2
        if text:
            ended = tracereplay(*words, out, "--force")
            assert (ended.code, "it is not replaced" in ended.err) == (2, True), ended.err
        assert out.read_text() == text
        out.unlink()
    assert tracereplay(*words, out).code == 0
    assert tracereplay(*words, out, "--force").code == 0
    edited = write(out, out.read_text() + mine).read_text()
    assert tracereplay(*words, out, "--force").code == 2
    assert out.read_text() == edited


def test_export_asks_for_force_and_replaces_only_what_it_wrote(
    tracereplay: Program, golden: Path, model: Path, prompts: Path, tmp_path: Path
) -> None:
    tensors, calls = tmp_path / "t.safetensors", tmp_path / "c.jsonl"
    words = ("export", golden, "model.norm", "-o", tensors, "--calls", calls)
    assert tracereplay(*words).code == 0
    before = tensors.read_bytes(), calls.read_bytes()
    ended = tracereplay(*words, "--step", 0)
    assert (ended.code, "--force to replace it" in ended.err) == (2, True)
    assert (tensors.read_bytes(), calls.read_bytes()) == before
    ended = tracereplay(*words, "--step", 99, "--force")
    assert ended.code == 2
    assert (tensors.read_bytes(), calls.read_bytes()) == before  # a run that fails changes nothing
    assert tracereplay(*words, "--step", 0, "--force").code == 0
    assert tensors.stat().st_size < len(before[0])
    for path in (model / "model.safetensors", *strangers(tmp_path, golden, prompts)):
        kept = path.read_bytes()
        for option in ("-o", "--calls"):
            ended = tracereplay("export", golden, "model.norm", option, path, "--force")
            assert (ended.code, "it is not replaced" in ended.err) == (2, True), ended.err
        assert path.read_bytes() == kept
    assert tracereplay("export", golden, "model.norm", "-o", calls, "--force").code == 2
    assert tracereplay("export", golden, "model.norm", "--calls", tensors, "--force").code == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_link_to_a_verdict_stays_a_link(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "verdict.json").symlink_to(tmp_path / "real" / "v.json")
    for _ in range(2):
        assert tracereplay("compare", golden, golden, "--json", tmp_path / "verdict.json").code == 0
    assert (tmp_path / "verdict.json").is_symlink()
    assert json.loads((tmp_path / "real" / "v.json").read_text())["verdict"] == "match"
