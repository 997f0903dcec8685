"""What a trace may ask for, by the lists; and that nothing but the gate opens what it asks."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import tomllib
from hypothesis import given
from hypothesis import strategies as st

import tracereplay
from tracereplay.bisector.changes import Told, configured, differences
from tracereplay.comparator.judging.settings import effect_of
from tracereplay.errors import UsageError
from tracereplay.gate import setting_refusal, variable_refusal, workload_of
from tracereplay.gate.rules import sampling_refusal
from tracereplay.launch import Configured
from tracereplay.sampling import SAMPLING
from tracereplay.storage.checkpoint import model_files
from tracereplay.trace import open_trace
from tracereplay.trace.manifest import write_manifest

LISTS = tomllib.loads((files("tracereplay.gate") / "gate.toml").read_text(encoding="utf-8"))
PACKAGE = Path(tracereplay.__file__).parent
ROOT = PACKAGE.parent
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enforce_eager", True), ("dtype", "bfloat16"), ("max_model_len", 4096), ("gpu_memory_utilization", 0.9),
        ("attention_backend", "TRITON_ATTN"),
        ("compilation_config", {"mode": 3, "custom_ops": ["none", "+rms_norm"]}),
        ("compilation_config", {"cudagraph_mode": "FULL", "cudagraph_capture_sizes": [1, 2, 4]}), ("seed", None),
        ("hf_overrides", {"head_dtype": "float32"}), ("quantization", "fp8"), ("worker_cls", None),
        ("rounding", "truncate"), ("noise", 0.05),
        ("speculative_config", {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}),
        ("speculative_config", {"model": "[ngram]", "num_speculative_tokens": 3}),
    ],
)  # fmt: skip
def test_plain_numbers_and_choices_may_be_asked_for(name: str, value: Any) -> None:
    found = setting_refusal(name, value)
    assert (found is None) == (name != "worker_cls"), found


@pytest.mark.parametrize(
    "value",
    [
        {"method": "draft_model", "model": "/tmp/evil"}, {"method": "ngram", "model": "/tmp/evil"},
        {"method": "custom_class", "model": "os.path"}, {"method": "ngram", "hf_overrides": {}}, "ngram",
        {"method": "ngram", "num_speculative_tokens": "3"}, {"method": ["ngram"]},
    ],
)  # fmt: skip
def test_drafts_may_only_be_looked_up_in_the_sequence(value: Any) -> None:
    assert setting_refusal("speculative_config", value) is not None


@given(name=st.text(min_size=1, max_size=12), value=json_values)
def test_unlisted_settings_are_refused(name: str, value: Any) -> None:
    if name not in LISTS["settings"] and name not in ("compilation_config", "hf_overrides"):
        assert setting_refusal(name, value)
    if name not in LISTS["environment"]:
        assert variable_refusal(name, value)
    if name not in LISTS["sampling"]:
        assert sampling_refusal(name, value)


@given(name=st.sampled_from(sorted(LISTS["settings"])), value=json_values)
def test_applied_settings_are_numbers_flags_or_listed_texts(name: str, value: Any) -> None:
    if setting_refusal(name, value) is not None or value is None:
        return
    kind = LISTS["settings"][name][0]
    assert isinstance(value, bool | int | float) or value in kind or (kind == "word" and value.isupper())


@pytest.mark.parametrize(
    "name",
    ["PATH", "PYTHONPATH", "PYTHONSTARTUP", "LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "VLLM_PLUGINS",
     "VLLM_WORKER_CLS", "VLLM_CACHE_ROOT", "HF_HOME", "HF_TOKEN", "CUDA_PATH", "TRITON_CACHE_DIR", "CC", "CXX",
     "VLLM_NCCL_SO_PATH", "http_proxy", "BASH_ENV", "GCONV_PATH", "MALLOC_CONF", "TRACEREPLAY_RECORD"],
)  # fmt: skip
def test_variables_that_can_load_something_are_never_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name, raising=False)
    assert variable_refusal(name, "1")
    engine = Configured("v1", Path("python"), {name: "mine"}, {})
    golden, theirs = Told({}, {}, {name: "evil.so"}), Told({}, {}, {name: "mine"})
    changes, skipped = differences(golden, theirs, engine, {})
    assert configured(engine, {}, changes).env == {name: "mine"}
    assert not changes
    ignored = name == "LD_PRELOAD" or effect_of(f"environment.{name}") == "none"
    assert [s.name for s in skipped] == ([] if ignored else [f"environment.{name}"])
    assert all("not taken from a trace" in s.reason for s in skipped)


def test_a_bisection_takes_no_setting_that_a_trace_may_not_ask_for() -> None:
    engine = Configured("v1", Path("python"), {}, {})
    evil = {"worker_cls": "evil.W", "quantization": "evil", "kv_cache_dtype": "fp8", "OMP": "1"}
    changes, skipped = differences(Told({}, evil, {"OMP_NUM_THREADS": "1; rm"}), Told({}, {}, {}), engine, {})
    assert [c.name for c in changes] == ["kv_cache_dtype"]
    assert {s.name for s in skipped} == {"worker_cls", "quantization", "OMP", "environment.OMP_NUM_THREADS"}
    trusted = Told({}, {"quantization": "mine"}, {}, trusted=True)
    assert [c.name for c in differences(trusted, Told({}, {}, {}), engine, {})[0]] == ["quantization"]


def test_every_gate_entry_has_a_reason() -> None:
    for table in ("settings", "compilation_config", "hf_overrides", "environment", "sampling"):
        for name, (kind, why) in LISTS[table].items():
            assert kind, name
            assert isinstance(why, str), name
            assert why, name
    assert set(LISTS["sampling"]) == set(SAMPLING)
    assert not set(LISTS["settings"]) & (set(LISTS["refused"]) - {"compilation_config"})


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_model_is_used_only_if_it_is_the_one_that_was_recorded(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    golden = tmp_path / "golden.trace"
    shutil.copytree(ROOT / "fixtures" / "hostile" / "meaning" / "kernel-of-a-stranger.trace", golden)
    model = tmp_path / "model"
    shutil.copytree(ROOT / "fixtures" / "tiny-llama", model)
    manifest = json.loads((golden / "manifest.json").read_text())
    manifest["run"]["workload"]["model"] = str(model)
    manifest["run"]["model_files"] = model_files(model)
    (golden / "manifest.json").write_bytes(write_manifest(manifest))
    with closing(open_trace(golden)) as trace:
        assert workload_of(trace, {}, None).model == str(model)
        (model / file).write_text('{"changed": true}')
        with pytest.raises(UsageError, match=f"{file} differs"):
            workload_of(trace, {}, None)
        assert workload_of(trace, {}, model).model == str(model)


def test_a_replay_takes_over_what_a_server_was_given_where_the_gate_lets_it(tmp_path: Path) -> None:
    golden = tmp_path / "golden.trace"
    shutil.copytree(ROOT / "fixtures" / "hostile" / "meaning" / "kernel-of-a-stranger.trace", golden)
    run = json.loads((golden / "manifest.json").read_text())["run"]
    run["workload"]["settings"] = {"max_model_len": 64}
    run["engine"]["arguments"] = {
        "block_size": 32, "max_model_len": "auto", "worker_cls": "evil.Worker", "gpu_memory_utilization": 0.3,
        "compilation_config": {"custom_ops": ["none"], "splitting_ops": ["evil"]}, "unheard_of": 1, "seed": "x",
        "enable_prefix_caching": False,
    }  # fmt: skip
    given = {"enable_prefix_caching": True}
    for command in (True, False):
        said = {**run, "command": ["vllm", "serve"]} if command else run
        manifest = {**json.loads((golden / "manifest.json").read_text()), "run": said}
        (golden / "manifest.json").write_bytes(write_manifest(manifest))
        with closing(open_trace(golden)) as trace:
            work = workload_of(trace, given, ROOT / "fixtures" / "tiny-llama", other_weights=True)
        inherited = {"block_size": 32, "compilation_config": {"custom_ops": ["none"]}} if command else {}
        assert work.settings == {"max_model_len": 64, **given, **inherited}
        assert work.inherited == set(inherited)


# -- nobody else opens it ------------------------------------------------------------------------------------


def _nodes() -> Iterator[tuple[str, ast.AST]]:
    for root in (PACKAGE, PACKAGE.parent / "cli"):
        for path in sorted(root.rglob("*.py")):
            name = str(path.relative_to(PACKAGE.parent))
            yield from ((name, node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_only_the_gate_opens_what_a_trace_asks_for() -> None:
    run, gate = "tracereplay/trace/run.py", "tracereplay/gate/__init__.py"
    opening = {"Asked": {run, gate}, "asked_of": {run, gate}, "_sealed": {run}}
    found: dict[str, set[str]] = {name: set() for name in opening}
    for file, node in _nodes():
        for name in {getattr(node, attribute, None) for attribute in ("id", "attr", "name")} & set(opening):
            found[name].add(file)
    assert found == opening


def test_settings_are_compared_in_one_place() -> None:
    found = {file for file, node in _nodes() if getattr(node, "attr", None) == "compared" and _is_request(node)}
    assert found == {"tracereplay/comparator/judging/settings.py"}


def _is_request(node: ast.AST) -> bool:
    """Whether the attribute is one of something called ``requested``."""
    value = getattr(node, "value", None)
    return "requested" in (getattr(value, "attr", None), getattr(value, "id", None))


def test_no_code_bypasses_the_typed_header_of_a_manifest() -> None:
    raw = {f for f, node in _nodes() if isinstance(node, ast.Attribute) and node.attr in ("manifest", "raw_run")}
    outside = {file for file in raw if not file.startswith("tracereplay/trace/")}
    assert outside == {
        "tracereplay/launch/filling.py",  # fills the manifest of the recording that it makes itself
        "tracereplay/bundle/cleaned.py", "tracereplay/bundle/redaction.py",  # write another, by allow-lists
    }  # fmt: skip


def test_a_workload_is_made_from_a_trace_by_the_gate_only() -> None:
    toy = "tracereplay/engines/toy/"  # the test double
    made = {
        file
        for file, node in _nodes()
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("Workload", "Prompt")
    }
    assert {file for file in made if not file.startswith(toy)} == {
        "tracereplay/gate/__init__.py",
        "tracereplay/workload.py",  # of the user's prompt file
        "cli/workloads.py",  # of the user's arguments
        "cli/invariance.py",  # of the user's arguments, with prompts of our own
        "tracereplay/checks/updating.py",  # of the user's prompt file, or what the gate made of a golden trace
        "tracereplay/invariance/workload.py",  # those prompts
        "tracereplay/invariance/search.py",  # prompts of a workload that the gate made, cut to other lengths
        "tracereplay/alone/replay.py",  # without prompts or settings: nothing is generated
        "tracereplay/trace/served.py",  # what a manifest lacks, for reading only
    }


@pytest.mark.parametrize(
    ("grammar", "taken"),
    [
        ({"regex": "[ab]+"}, True),
        ({"json": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}}, True),
        ({"json": '{"$ref": "#/a"}'}, True),
        ({"json": {"$ref": "https://evil.example/s"}}, False),
        ({"json": '{"$ref": "file:///etc/passwd"}'}, False),
        ({"regex": "a" * (1 << 16)}, False),
        ({"regex": "a", "backend": "evil"}, False),
    ],
)
def test_a_grammar_is_text_that_is_matched_and_refers_to_nothing_elsewhere(
    grammar: dict[str, object], taken: bool
) -> None:
    assert (sampling_refusal("structured_outputs", grammar) is None) == taken
