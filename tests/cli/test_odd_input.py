"""Input that is unusual and not wrong works; what a mode would ignore is refused by its name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cli_support import write
from program import Program

from tracereplay.environments.registry import Engine, register
from tracereplay.environments.registry import load_engine as load
from tracereplay.trace import open_trace
from tracereplay.workload import read_prompts


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b'\xef\xbb\xbf{"prompt": "a"}\n', ["a"]),
        (b'{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n', ["a", "b"]),
        ('{"prompt": "a\u2028b\u2029c\x85d"}\n{"prompt": "e"}'.encode(), ["a\u2028b\u2029c\x85d", "e"]),
    ],
    ids=["byte order mark", "Windows", "line separators"],
)
def test_prompts_as_other_programs_write_them(
    tracereplay: Program, model: Path, tmp_path: Path, data: bytes, texts: list[str]
) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_bytes(data)
    assert [prompt.text for prompt in read_prompts(prompts, {})] == texts
    if data.isascii() or data.startswith(b"\xef"):  # the toy's vocabulary ends there
        common = ("--engine", "toy", "--model", model, "--prompts", prompts, "-o", tmp_path / "out.trace")
        assert tracereplay("record", *common).code == 0
        assert len(open_trace(tmp_path / "out.trace").results["record"]["requests"]) == len(texts)


def test_a_verdict_and_a_policy_with_a_byte_order_mark_are_read(
    tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    verdict, policy = tmp_path / "v.json", tmp_path / "p.toml"
    policy.write_bytes(b"\xef\xbb\xbf[tokens]\r\ndiffering = 1\r\n")
    assert tracereplay("compare", golden, golden, "--json", verdict, "--policy", policy).code == 0
    verdict.write_bytes(b"\xef\xbb\xbf" + verdict.read_bytes())
    assert tracereplay("report", verdict).code == 0
    assert tracereplay("compare", golden, golden, "--json", verdict).code == 0  # it is a verdict all the same


URL = "https://example.org/golden.trace"


def test_a_url_without_a_trace_is_said_before_anything_starts(tracereplay: Program) -> None:
    url = "memory://nowhere/golden.trace"
    for words in (
        ("replay", url, "--engine", "toy"),
        ("replay", url, "--engine", "toy", "--mode", "isolated"),
        ("bisect", "operators", url, "--engine", "toy"),
        ("bisect", "settings", url, "--engine", "toy"),
        ("bisect", "versions", url, "--good", "1", "--bad", "2"),
        ("calibrate", url, "--engine", "toy"),
    ):
        ended = tracereplay(*words)
        assert (ended.code, "There is no trace at /nowhere/golden.trace" in ended.err) == (5, True), ended.err


def test_nothing_is_written_to_a_url(
    tracereplay: Program, golden: Path, model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for words in (
        ("record", "--engine", "toy", "--model", model, "--prompts", prompts, "-o", URL),
        ("replay", golden, "--engine", "toy", "-o", URL),
        ("calibrate", golden, "--engine", "toy", "-o", URL),
        ("calibrate", golden, "--engine", "toy", "--keep", URL),
        ("bisect", "settings", golden, "--engine", "toy", "--work", URL),
        ("pack", golden, "-o", URL),
        ("export", golden, "-o", URL),
        ("export", golden, "--calls", URL),
        ("repro", golden, "--site", "model.norm", "--step", 0, "-o", URL),
    ):
        ended = tracereplay(*words)
        assert (ended.code, f"Cannot write to {URL}" in ended.err) == (2, True), ended.err
    assert list((tmp_path / "here").iterdir()) == []


JUNK = ["", "nonsense", "[]", "[1]", '"text"', "null", "{}", '{"name": "junk"}', '{"name": 5, "python": "/p"}',
        '{"name": "other", "python": "/p"}', '{"name": "junk", "python": "/p", "versions": [1]}',
        '{"name": "junk", "python": "/p", "env": {"A": 1}}', "[" * 100_000]  # fmt: skip


@pytest.mark.parametrize("text", JUNK)
def test_a_junk_file_among_the_engines_is_said_and_in_nobodys_way(
    tracereplay: Program, home: Path, golden: Path, text: str
) -> None:
    junk = write(home / "engines" / "junk.json", text)
    ended = tracereplay("engine", "list")
    assert ended.code == 0, ended.err
    assert "toy" in ended.out
    assert "The registration of the engine 'junk' cannot be read" in ended.err
    assert tracereplay("replay", golden, "--engine", "toy").code == 0
    assert "There are: toy." in tracereplay("replay", golden, "--engine", "absent").err
    ended = tracereplay("replay", golden, "--engine", "junk")
    assert (ended.code, f"Delete {junk}" in ended.err) == (2, True)
    assert tracereplay("engine", "remove", "toy").code == 0


def test_other_junk_among_the_engines(tracereplay: Program, home: Path) -> None:
    (home / "engines" / "binary.json").write_bytes(b"\xff\xfe\x00")
    (home / "engines" / "folder.json").mkdir()
    write(home / "engines" / "notes.txt", "mine")
    ended = tracereplay("engine", "list")
    assert (ended.code, "'binary'" in ended.err, "'folder'" in ended.err) == (0, True, True), ended.err


def test_an_environment_stays_where_somebody_unreadable_may_use_it(tracereplay: Program, home: Path) -> None:
    environment = home / "environments" / "shared"
    environment.mkdir(parents=True)
    register(Engine("mine", environment / "python", environment=environment))
    write(home / "engines" / "junk.json", "{")
    assert tracereplay("engine", "remove", "mine").code == 0
    assert environment.exists()
    (home / "engines" / "junk.json").unlink()
    register(Engine("mine", environment / "python", environment=environment))
    assert load("mine").environment == environment
    assert tracereplay("engine", "remove", "mine").code == 0
    assert not environment.exists()


def test_h_is_help_for_each_verb(tracereplay: Program) -> None:
    for words in (
        (),
        ("record",),
        ("replay",),
        ("engine",),
        ("engine", "list"),
        ("bisect", "settings"),
        ("show",),
    ):
        short, whole = tracereplay(*words, "-h"), tracereplay(*words, "--help")
        assert (short.code, short.out) == (0, whole.out)
    for code in ("70 internal error", "130 interrupted", "141 standard output"):
        assert code in " ".join(tracereplay("-h").out.split())


# -- what would be ignored -----------------------------------------------------------------------------------


def test_a_command_of_the_users_refuses_by_name_what_it_says_itself(
    tracereplay: Program, tmp_path: Path, model: Path, prompts: Path
) -> None:
    for words in (
        ("--log", tmp_path / "x.log"), ("--check-observer",), ("--max-tokens", 16), ("--temperature", 0),
        ("--seed", 0), ("--n", 1), ("--logprobs", 0), ("--model", model), ("--prompts", prompts),
        ("--set", "a=1"), ("--with-weights",),
    ):  # fmt: skip
        ended = tracereplay("record", "-o", tmp_path / "c.trace", *words, "--", sys.executable, "-c", "pass")
        assert (ended.code, f"leave out {words[0]}." in ended.err) == (2, True), ended.err
        assert not (tmp_path / "c.trace").exists()
    words = ("--seed", 1, "--n", 2)
    ended = tracereplay("record", "-o", tmp_path / "c.trace", *words, "--", sys.executable, "-c", "pass")
    assert "leave out --seed, --n." in ended.err


def test_each_mode_refuses_by_name_what_it_would_ignore(
    tracereplay: Program, golden: Path, model: Path, prompts: Path, tmp_path: Path
) -> None:
    record = ("record", "--engine", "toy", "--model", model, "--prompts", prompts, "-o", tmp_path / "o.trace")
    replay = ("replay", golden, "--engine", "toy")
    calibrate = ("calibrate", golden, "--engine", "toy")
    for words, named in (
        ((*record, "--no-check-writes"), "--check-writes"),
        ((*replay, "--mode", "isolated", "--set", "a=1"), "--set"),
        ((*replay, "--mode", "isolated", "--log", tmp_path / "x.log"), "--log"),
        ((*replay, "--site", "x"), "--site"),
        ((*replay, "--force"), "--force"),
        (("demo", "--force", "--json", tmp_path / "v.json"), "--force"),
        ((*calibrate, "--force"), "--force"),
        (("compare", golden, golden, "--model", model), "--model"),
        (("show", golden, "--step", 0), "--step"),
        (("show", golden, "model.norm", "--json", "-"), "--json"),
        (("show", golden, "model.norm", "--model", model), "--model"),
        (("show", golden, "--steps", 4), "--steps"),
        (("show", golden, "--kernels"), "--kernels"),
        (("show", golden, "model.norm", "--kernels", "--request", 0), "--request"),
        (("show", golden, "model.norm", "--all", "--steps", 4), "--steps"),
        (("show", golden, "model.norm", "--step", 0, "--steps", 4), "--steps"),
    ):
        ended = tracereplay(*words)
        assert (ended.code, named in ended.err) == (2, True), (words, ended.err)
        assert "Starting" not in ended.err


def test_show_of_a_pass_without_a_site(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    for words in ((), ("model.norm",)):
        ended = tracereplay("show", golden, *words, "--pass", "injected")
        assert (ended.code, "has no pass 'injected'; it has record." in ended.err) == (2, True), ended.err
    candidate = tmp_path / "c.trace"
    assert tracereplay("replay", golden, "--engine", "toy", "-o", candidate).code == 0
    shown = tracereplay("show", candidate, "--pass", "rerun").out
    assert "steps of rerun" in shown
    assert "pass rerun" in shown
    assert "injected" not in shown
    assert json.loads((candidate / "manifest.json").read_text())["passes"].keys() == {"rerun", "injected"}
