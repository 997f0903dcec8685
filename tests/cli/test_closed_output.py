"""A standard output that nobody reads ends each verb with 141, whatever the verdict, and loses nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import write
from program import Program
from test_interrupt import PROGRAM

from tracereplay.cli.verbs import VERBS, load
from tracereplay.trace import open_trace


def ended(words: tuple[object, ...], stdout: int | None, **options: Any) -> tuple[int, str]:
    """Exit code and stderr of the program with its standard output at a file descriptor; None: closed."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    if stdout is None:
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(
        command, stdout=stdout, stderr=options.pop("stderr", subprocess.PIPE), text=True, timeout=120, **options
    )
    return done.returncode, done.stderr or ""


@pytest.fixture
def gone() -> Iterator[int]:
    """The end of a pipe whose reader has gone, as after ``| head``."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one verdict lies."""
    return tmp_path_factory.mktemp("judged") / "v.json"


@pytest.fixture
def verdict(tracereplay: Program, golden: Path, judged: Path) -> Path:
    if not judged.exists():
        assert tracereplay("compare", golden, golden, "--json", judged).code == 0
    return judged


# What each verb is asked for. Those that only exist for engines of vLLM's are asked for help, as are those for a
# recording that runs.
TELL = {
    "show": ("show", "{golden}"), "compare": ("compare", "{golden}", "{golden}"),
    "replay": ("replay", "{golden}", "--engine", "toy", "--set", "flaw=model.norm:scale"),
    "logprobs": ("logprobs", "{golden}", "{golden}"), "verify": ("verify", "{golden}"),
    "report": ("report", "{verdict}"),
    "bisect operators": ("bisect", "operators", "{golden}", "--engine", "toy", "--set", "flaw=model.norm:scale"),
    "bisect settings": ("bisect", "settings", "{golden}", "--engine", "toy"),
    "bisect versions": ("bisect", "versions", "--help"),
    "calibrate": ("calibrate", "{golden}", "--engine", "toy", "--vary", "repeat"),
    "invariance": ("invariance", "{golden}", "--engine", "toy", "--vary", "order"),
    "engine list": ("engine", "list"), "engine create": ("engine", "create", "--help"),
    "engine add": ("engine", "add", "-h"), "engine doctor": ("engine", "doctor", "-h"),
    "engine remove": ("engine", "remove", "-h"),
    "engine env": ("engine", "env", "-h"), "ray env": ("ray", "env", "-h"),
    "ray finish": ("ray", "finish", "-h"), "demo": ("demo", "--help"),
    "check": ("check", "--help"), "goldens": ("goldens", "{golden}"), "bundle": ("bundle", "-h"),
    **{verb: (verb, "--help") for verb in ("status", "start", "stop", "trigger", "set")},
}  # fmt: skip
# Verbs whose result is a file: they have nothing to say on standard output.
MAKE = {
    "record": ("record", "--engine", "toy", "--model", "{model}", "--prompts", "{prompts}", "-o", "{out}"),
    "pack": ("pack", "{golden}", "-o", "{out}"), "export": ("export", "{golden}", "-o", "{out}"),
    "repro": ("repro", "{golden}", "--site", "model.norm", "--step", "0", "-o", "{out}"),
}  # fmt: skip


def test_each_verb_is_among_them() -> None:
    verbs = {f"{name} {sub}" if sub else name for name in VERBS for sub in getattr(load(name), "commands", [""])}
    assert verbs == {*TELL, *MAKE}


@pytest.mark.parametrize("verb", TELL)
def test_a_reader_that_has_gone_ends_it_with_141(verb: str, golden: Path, verdict: Path, gone: int) -> None:
    words = tuple(word.format(golden=golden, verdict=verdict) for word in TELL[verb])
    code, err = ended(words, gone)
    assert code == 141, err
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


@pytest.mark.parametrize("verb", ["show", "compare", "engine list", "demo"])
def test_a_closed_standard_output_ends_it_with_141(verb: str, golden: Path, verdict: Path) -> None:
    words = tuple(word.format(golden=golden, verdict=verdict) for word in TELL[verb])
    code, err = ended(words, None)
    assert code == 141, err
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", MAKE)
def test_a_verb_that_makes_a_file_makes_it(
    verb: str, golden: Path, model: Path, prompts: Path, tmp_path: Path, gone: int
) -> None:
    for number, stdout in enumerate((gone, None)):
        out = tmp_path / f"{number}.out"
        code, err = ended(
            tuple(word.format(golden=golden, model=model, prompts=prompts, out=out) for word in MAKE[verb]), stdout
        )
        made = verb != "repro"  # the toy's operators are not vLLM's, so that is refused in a sentence
        assert (code, out.exists()) == ((0, True) if made else (2, False)), err
        if verb == "record":
            assert open_trace(out).complete


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("show", "nowhere"), 5),
        (("rewind",), 2),
        (("show", "--loud"), 2),
        (("--help",), 141),
        (("--version",), 141),
    ],
)
def test_what_is_wrong_keeps_its_exit_code(words: tuple[str, ...], code: int, gone: int) -> None:
    assert ended(words, gone)[0] == code
    assert ended(words, gone, stderr=gone)[0] == code
    assert ended(words, None)[0] == code


def test_work_goes_on_where_only_stderr_has_gone(golden: Path, tmp_path: Path, gone: int) -> None:
    words = ("replay", golden, "--engine", "toy", "--set", "flaw=model.norm:scale", "-o", tmp_path / "c.trace")
    with (tmp_path / "out").open("w") as out:
        assert ended(words, out.fileno(), stderr=gone)[0] == 1
    assert "DIVERGED" in (tmp_path / "out").read_text()
    assert open_trace(tmp_path / "c.trace").complete
    assert ended((*words, "--force"), gone, stderr=gone)[0] == 141


def test_files_are_not_opened_in_place_of_closed_streams(golden: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "replay",
        str(golden),
        "--engine",
        "toy",
        "-o",
        str(tmp_path / "c.trace"),
    ]
    closed = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], timeout=120)
    assert closed.returncode == 141
    trace = open_trace(tmp_path / "c.trace")
    assert trace.complete
    assert trace.digest() is not None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_standard_output_on_a_full_disk_is_said(golden: Path) -> None:
    with open("/dev/full", "w") as full:
        code, err = ended(("compare", golden, golden), full.fileno())
    assert code == 4
    assert "No space left on device" in err
    assert "Exception ignored" not in err


# -- what an encoding cannot say -------------------------------------------------------------------------------


def test_a_terminal_that_has_only_ascii_gets_everything(golden: Path, tmp_path: Path) -> None:
    write(tmp_path / "out", "")
    for words, code in (
        (("replay", golden, "--engine", "toy", "--set", "rounding=twice", "--strict"), 1),
        (("show", golden, "--all"), 0),
        (("--help",), 0),
        (("show", f"{golden}-ünïcode-\udcff"), 5),
    ):
        with (tmp_path / "out").open("w") as out:
            found, err = ended(words, out.fileno(), env={**os.environ, "PYTHONIOENCODING": "ascii"})
        told = (tmp_path / "out").read_bytes() + err.encode()
        assert found == code, err
        assert told.isascii()
        assert b"->" in told or words[0] != "replay"
