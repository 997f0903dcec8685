"""The toy as a newcomer meets it: registered, examined, recorded, replayed and bisected at the command line.

One home and one golden recording serve all of these tests, and each starts real processes of the toy's.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from program import Program
from safetensors.numpy import save

from tracereplay import open_trace
from tracereplay.comparator import load_policy
from tracereplay.engines.toy.checkpoint import read_tensors, write_checkpoint
from tracereplay.engines.toy.family import VERSION
from tracereplay.engines.toy.weights import SHAPES
from tracereplay.environments.registry import Engine, load_engine, register
from tracereplay.errors import WorkloadError
from tracereplay.storage.checkpoint import read_checkpoint

SITE = "model.layers.1.mlp.act_fn"
PROMPTS = '{"prompt_token_ids": [5, 6, 7, 8, 9], "max_tokens": 6}\n{"prompt": "hello", "max_tokens": 6}\n'
# Whatever of these is imported, here or in an engine, fails.
HEAVY = ("torch", "vllm", "transformers")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tests share: the home, prompts, the golden trace."""
    found = tmp_path_factory.mktemp("newcomer")
    (found / "prompts.jsonl").write_text(PROMPTS)
    (found / "blocked").mkdir()
    for name in HEAVY:
        (found / "blocked" / f"{name}.py").write_text("raise ImportError('it is not to be imported here')\n")
    return found


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRACEREPLAY_HOME", str(place / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONPATH", str(place / "blocked"))  # of the engines; this process has begun
    for name in HEAVY:
        monkeypatch.setitem(sys.modules, name, None)
    return place / "home"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.fixture
def toy(run: Program, home: Path) -> Engine:
    """The engine, registered by the first test that asks for it."""
    if not (home / "engines" / "toy.json").exists():
        ended = run("engine", "add", "toy", "--family", "toy")
        assert ended.code == 0, ended.err
        assert f"Its model is in {home / 'models' / 'toy'}." in ended.err
    return load_engine("toy")


@pytest.fixture
def golden(run: Program, toy: Engine, place: Path) -> Path:
    return recorded(run, place, "golden.trace")


def recorded(run: Program, place: Path, name: str, *words: object) -> Path:
    """A recording, without ``--model``; made once."""
    out = place / name
    if not out.exists():
        ended = run("record", "--engine", "toy", "--prompts", place / "prompts.jsonl", "-o", out, *words)
        assert ended.code == 0, ended.err
    return out


# -- the engine ----------------------------------------------------------------------------------------------


def test_adding_it_needs_no_interpreter_and_brings_a_model(toy: Engine, home: Path) -> None:
    assert (toy.family, str(toy.python), toy.model) == ("toy", sys.executable, home / "models" / "toy")
    assert toy.versions == {"python": "{}.{}.{}".format(*sys.version_info), "toy": VERSION}
    assert read_checkpoint(home / "models" / "toy").digest is not None


def test_vllm_needs_an_interpreter_and_families_are_known(run: Program) -> None:
    ended = run("engine", "add", "gpu")
    assert (ended.code, "needs --python: the interpreter of an environment with vLLM." in ended.err) == (2, True)
    ended = run("engine", "add", "gpu", "--family", "tgi")
    assert (ended.code, ended.err) == (2, "There is no family of engines named 'tgi'; there are toy and vllm.\n")


def test_an_interpreter_without_tracereplay_has_no_toy(run: Program, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    ended = run("engine", "add", "bare", "--family", "toy", "--python", bare)
    assert (ended.code, "has no tracereplay, of which the toy engine is a part" in ended.err) == (2, True)


def test_a_registration_of_before_there_were_families_is_read(home: Path, toy: Engine) -> None:
    old = {"schema": 1, "name": "old", "python": "/usr/bin/python3", "versions": {"vllm": "0.8.5"}}
    (home / "engines" / "old.json").write_text(json.dumps(old))
    engine = load_engine("old")
    (home / "engines" / "old.json").unlink()
    assert (engine.family, engine.model, engine.environment) == ("vllm", None, None)


def test_list_and_doctor_know_it(run: Program, toy: Engine) -> None:
    listed = run("engine", "list")
    assert (listed.code, f"toy {VERSION}" in listed.out, sys.executable in listed.out) == (0, True, True)
    ended = run("engine", "doctor", "toy")
    assert ended.code == 0, ended.err
    assert f"toy {VERSION}." in ended.err
    assert "The engine starts and generated one token" in ended.err


def test_removing_it_removes_its_model_unless_another_engine_has_it(run: Program, home: Path) -> None:
    for name in ("one", "plain"):
        assert run("engine", "add", name, "--family", "toy").code == 0
    register(replace(load_engine("one"), name="two"))
    assert "The engine 'one' was removed" in run("engine", "remove", "one").err
    assert (home / "models" / "one").is_dir()
    assert "The engine 'two' and its model were removed" in run("engine", "remove", "two").err
    assert "The engine 'plain' and its model were removed" in run("engine", "remove", "plain").err
    assert {path.name for path in (home / "models").iterdir()} <= {"toy"}


def test_a_model_that_lies_elsewhere_is_never_removed(run: Program, toy: Engine, tmp_path: Path) -> None:
    register(replace(toy, name="mine", model=tmp_path))
    assert run("engine", "remove", "mine").code == 0
    assert tmp_path.is_dir()


# -- recording and replaying -----------------------------------------------------------------------------------


def test_a_recording_says_whose_it_is(golden: Path, toy: Engine) -> None:
    with open_trace(golden) as trace:
        assert trace.complete
        assert (trace.run.engine["family"], trace.run.engine["versions"]) == ("toy", {"toy": VERSION})
        assert trace.run.engine_facts("settings") == {"dtype": "bfloat16", "rounding": "once", "noise": 0.0}
        assert trace.run.weights == read_checkpoint(Path(str(toy.model))).digest
        assert [len(r["token_ids"]) for r in trace.results["record"]["requests"]] == [6, 6]


def test_the_same_engine_matches(run: Program, golden: Path) -> None:
    ended = run("replay", golden, "--engine", "toy", "--strict", "--json", "-")
    verdict = ended.verdict
    assert (ended.code, verdict["verdict"], verdict["mode"]) == (0, "match", "injected")
    assert {operator["class"] for operator in verdict["operators"]} == {"identical"}
    assert verdict["settings_diff"] == []
    assert (verdict["golden"]["engine"], verdict["candidate"]["engine"]) == (verdict["golden"]["engine"],) * 2


def test_a_planted_flaw_is_found_where_it_is(run: Program, golden: Path, place: Path) -> None:
    out = place / "candidate.trace"
    ended = run("replay", golden, "--engine", "toy", "--set", f"flaw={SITE}:scale", "--json", "-", "-o", out)
    verdict = ended.verdict
    assert (ended.code, verdict["verdict"], verdict["cause"]) == (1, "diverged", "operator")
    first = verdict["first_divergence"]
    assert (first["kind"], first["site"], first["operator"]) == ("operator", SITE, "SiluAndMul")
    assert [o["site"] for o in verdict["operators"] if o["class"] != "identical"] == [SITE]
    assert verdict["settings_diff"] == []  # an engine with a fault does not know of it
    compared = run("compare", golden, out, "--json", "-")
    assert (compared.code, compared.verdict) == (1, verdict)


def test_a_flaw_between_operators_is_an_edge(run: Program, golden: Path) -> None:
    flaw = "flaw=model.layers.0.self_attn.attn:scaled_edge:2"
    first = run("replay", golden, "--engine", "toy", "--set", flaw, "--json", "-").verdict["first_divergence"]
    assert (first["kind"], first["site"]) == ("edge", "model.layers.0.self_attn.attn")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("roundign=twice", "This engine has no setting 'roundign'; did you mean rounding?"),
        ("rounding=thrice", "setting 'rounding' is 'thrice'; it must be one of once, twice, truncate."),
        ("noise=-1", "setting 'noise' is -1; it must be a number from 0 on."),
        ("flaw=model.nrm:scale", "no operator 'model.nrm' to plant a flaw in; did you mean 'model.norm'?"),
        ("flaw=model.norm", "The flaw 'model.norm' is not of the form SITE:KIND or SITE:KIND:INDEX."),
        ("flaw=model.norm:odd", "The toy engine knows no flaw 'odd'; it knows scale, element,"),
        ("max_model_len=9", "Prompt 0 and what it asks for are 11 tokens; max_model_len allows 9."),
    ],
)
def test_a_wrong_setting_is_a_sentence(run: Program, golden: Path, setting: str, sentence: str) -> None:
    ended = run("replay", golden, "--engine", "toy", "--set", setting)
    assert (ended.code, sentence in ended.err, "Traceback" in ended.err) == (2, True, False), ended.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--level", "kernel"),
            "The toy engine's operators dispatch no kernels; record it with --level operator.",
        ),
        (("--max-steps", 2), "The toy engine records whatever it generates; leave out --max-steps."),
    ],
)
def test_what_it_cannot_record_it_says(
    run: Program, toy: Engine, place: Path, tmp_path: Path, words: tuple[object, ...], sentence: str
) -> None:
    common = ("--engine", "toy", "--prompts", place / "prompts.jsonl", "-o", tmp_path / "t.trace")
    ended = run("record", *common, *words)
    assert (ended.code, sentence in ended.err) == (2, True), ended.err


def test_a_model_of_another_kind_is_refused(run: Program, toy: Engine, place: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    words = ("--prompts", place / "prompts.jsonl", "-o", tmp_path / "t.trace", "--model", tmp_path)
    ended = run("record", "--engine", "toy", *words)
    assert (ended.code, "(its model_type is 'llama')" in ended.err) == (2, True), ended.err


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (b"no tensors", "cannot be read as safetensors"),
        (save({"lm_head.weight": np.zeros((128, 2))}), "lm_head.weight has the shape (128, 2), and (128, 64) was"),
    ],
    ids=["damaged", "of another model"],
)
def test_weights_that_are_not_its_own_are_refused(tmp_path: Path, tensors: bytes, sentence: str) -> None:
    write_checkpoint(tmp_path)
    assert {name: tensor.shape for name, tensor in read_tensors(tmp_path).items()} == SHAPES
    (tmp_path / "model.safetensors").write_bytes(tensors)
    with pytest.raises(WorkloadError) as raised:
        read_tensors(tmp_path)
    assert sentence in str(raised.value)


def test_single_calls_of_it_are_not_run(run: Program, golden: Path) -> None:
    ended = run("replay", golden, "--engine", "toy", "--mode", "isolated")
    assert (ended.code, "Single calls of the toy engine cannot be run in isolation" in ended.err) == (2, True)


def test_two_ranks_are_joined(run: Program, golden: Path) -> None:
    words = ("--set", "tensor_parallel_size=2", "--set", "max_num_seqs=1", "--set", "max_num_batched_tokens=3")
    verdict = run("replay", golden, "--engine", "toy", *words, "--json", "-").verdict
    assert verdict["verdict"] == "match"
    assert verdict["candidate"]["engine"]["ranks"] == 2
    assert {o["class"] for o in verdict["operators"]} <= {"identical", "rounding"}


# -- causes ----------------------------------------------------------------------------------------------------


def test_bisecting_by_operators_names_the_flaw(run: Program, golden: Path) -> None:
    flaws = f"flaw=model.layers.0.self_attn.o_proj:scale,{SITE}:coarse"
    ended = run("bisect", "operators", golden, "--engine", "toy", "--set", flaws, "--json", "-")
    found = ended.verdict["bisection"]
    assert (ended.code, found["kind"], found["proven"]) == (1, "operators", True)
    assert {member["name"] for member in found["minimal"]} == {"model.layers.0.self_attn.o_proj", SITE}
    assert any("(closure holds)" in reason for reason in ended.verdict["reasons"])


def test_bisecting_by_settings_names_the_rounding_that_golden_had(run: Program, toy: Engine, place: Path) -> None:
    golden = recorded(run, place, "truncated.trace", "--set", "rounding=truncate")
    words = ("--set", "rounding=once", "--set", "enforce_eager=true", "--strict", "--json", "-")
    verdict = run("bisect", "settings", golden, "--engine", "toy", *words).verdict
    assert (verdict["verdict"], verdict["cause"]) == ("diverged", "setting")
    assert [(m["name"], m["value"]) for m in verdict["bisection"]["minimal"]] == [("rounding", "truncate")]
    assert verdict["bisection"]["arguments"] == ['--set rounding="truncate"']
    assert {"name": "rounding", "golden": "truncate", "candidate": "once", "effect": "numeric"} in verdict[
        "settings_diff"
    ]
    # A trace may ask for a way of rounding by itself, and then there is nothing to find.
    assert run("replay", golden, "--engine", "toy", "--strict", "--json", "-").verdict["verdict"] == "match"


def test_bisecting_by_settings_names_the_flaw(run: Program, golden: Path) -> None:
    words = ("--set", "flaw=model.norm:coarse", "--set", "max_num_seqs=1", "--json", "-")
    found = run("bisect", "settings", golden, "--engine", "toy", *words).verdict["bisection"]
    assert [member["name"] for member in found["minimal"]] == ["flaw"]
    assert found["arguments"] == ["no --set flaw"]


def test_a_trace_may_not_ask_for_a_flaw(run: Program, toy: Engine, place: Path) -> None:
    golden = recorded(run, place, "flawed.trace", "--set", f"flaw={SITE}:scale")
    ended = run("replay", golden, "--engine", "toy")
    assert (ended.code, f"flaw={SITE}:scale, which plants a fault on purpose" in ended.err) == (5, True), ended.err
    verdict = run("replay", golden, "--engine", "toy", "--set", "flaw=null", "--json", "-").verdict
    assert verdict["first_divergence"]["site"] == SITE


def test_calibrating_earns_what_its_noise_needs(run: Program, golden: Path, place: Path, tmp_path: Path) -> None:
    policy, noisy = tmp_path / "policy.toml", ("--set", "noise=0.1")
    assert run("replay", golden, "--engine", "toy", *noisy, "--json", "-").verdict["verdict"] == "diverged"
    ended = run("calibrate", golden, "--engine", "toy", *noisy, "--vary", "batch,repeat", "-o", policy)
    assert ended.code == 0, ended.err
    earned = {rule.operator for rule in load_policy(policy).calibration if rule.kind == "operator"}
    assert "RowParallelLinear" in earned
    assert "RMSNorm" not in earned  # it has no noise of its own


# -- the trace, and what it takes ------------------------------------------------------------------------------


def test_show_verify_and_pack_read_it(run: Program, golden: Path, tmp_path: Path) -> None:
    shown = run("show", golden)
    assert (shown.code, f"toy: toy {VERSION}" in shown.out) == (0, True)
    assert run("verify", golden).code == 0
    packed = tmp_path / "golden.pack"
    assert run("pack", golden, "-o", packed).code == 0
    assert run("compare", golden, packed, "--json", "-").verdict["verdict"] == "match"


def test_nothing_of_it_needs_torch(golden: Path, place: Path, tmp_path: Path) -> None:
    """The program and its engine as processes in which importing torch fails, as in the other tests' engines."""

    def process(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from tracereplay.cli.main import main; main()", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert os.environ["PYTHONPATH"] == str(place / "blocked")
    tried = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, text=True)
    assert (tried.returncode, "it is not to be imported here" in tried.stderr) == (1, True)
    out = tmp_path / "bare.trace"
    done = process("record", "--engine", "toy", "--prompts", place / "prompts.jsonl", "-o", out)
    assert done.returncode == 0, done.stderr
    assert open_trace(out).digest() == open_trace(golden).digest()
    done = process("replay", out, "--engine", "toy", "--set", f"flaw={SITE}:scale", "--oracle", "--json", "-")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["first_divergence"]["site"] == SITE


def test_the_readme_shows_what_its_commands_print(
    run: Program, toy: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    add, echo, *commands = re.findall(r"^(?:tracereplay|echo) .*$", readme, re.MULTILINE)[:4]
    assert add == "tracereplay engine add toy --family toy"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("prompts.jsonl").write_text(shlex.split(echo)[1])
    ended = [run(*shlex.split(command)[1:]) for command in commands]
    assert [e.code for e in ended] == [0, 1], ended[0].err
    shown = readme.split("-->\n```\n")[1].split("\n```")[0].splitlines()
    printed = iter([line.rstrip() for line in ended[1].out.splitlines()])
    assert all(line in printed for line in shown if line != "..."), "the lines of README's report, in this order"
