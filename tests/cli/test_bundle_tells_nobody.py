"""No byte of a bundle says who made it, where, or with what: each is looked for, in every form, in every part."""

from __future__ import annotations

import base64
import getpass
import json
import re
import socket
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cli_support import forms, make_model, write
from program import Program
from safetensors.numpy import load_file, save_file

from tracereplay.bundle.allowed import Cleaner, hub_name
from tracereplay.bundle.cleaned import kernels_of
from tracereplay.event import Request
from tracereplay.trace import CallOfStep, SegmentReader, SegmentWriter, TensorBytes, open_trace
from tracereplay.trace.manifest import write_manifest

USER, HOST, KEY = "zebulonquux", "gpu-box-7.quuxcorp.example", "sk-live-8Zq4TgW1nQ"
HOME = f"/home/{USER}"
VARIABLE, VALUE = "QUUXCORP_ENDPOINT", "https://quuxcorp.example/v1"
PROMPT, STOP, CLIENT = "xyzzy plugh frobozz", "WHISPER THIS STOP", "customer-77-quuxcorp"
# No tokens of these texts: the toy's are a text's bytes, and token ids stay where only texts are left out.
TOKENS, OTHERS = [101, 37, 113, 94, 88, 61, 119], [64, 90, 33, 107, 45, 72]
ALWAYS = (USER, HOST, KEY, HOME, VARIABLE, VALUE, CLIENT, "quuxcorp", "/models/private-thing")
TEXTS = (PROMPT, "plugh", STOP)


def planted(source: Path) -> None:
    """Puts all of it into a trace of ours wherever a recording may have something of the kind."""
    path = source / "manifest.json"
    manifest = json.loads(path.read_text())
    run = manifest["run"]
    run["engine"] |= {
        "name": f"{USER}s-engine", "host": HOST, "device": f"cpu of {HOST}/{USER}",
        "environment": {VARIABLE: VALUE, "HF_HOME": f"{HOME}/.cache", "OMP_NUM_THREADS": "1"},
        "arguments": {"api_key": KEY, "download_dir": f"{HOME}/models", "seed": 1, "max_model_len": 64},
        "resolved": {"served_by": HOST, "compile_dir": f"{HOME}/.cache/x", "threads": 2},
        "model_config": {"_name_or_path": f"{HOME}/models/private-thing", "owner": USER, "hidden_size": 8},
        "hf_overrides": {"note": KEY},
    }  # fmt: skip
    run["engine"]["settings"] |= {"download_dir": HOME, "attention_backend": "TORCH_SDPA"}
    run["engine"]["versions"] |= {"mine": f"1.0 built in {HOME}"}
    run["workload"]["settings"] |= {"seed": 3}
    run["notes"] = [f"The log is in {HOME}/log.", f'It said "{KEY}" to {HOST}.', "A note of no consequence."]
    run["command"] = ["vllm", "serve", f"{HOME}/models/private-thing", "--api-key", KEY]
    run["model_files"] = {"config.json": "0" * 32, f"{USER}.json": "1" * 32}
    time = "2026-01-01T00:00:00+00:00"
    run["trigger"] = {"kind": "nonfinite", "detail": f"of {CLIENT}", "time": time, "step": 1}
    run["quuxcorp"] = {"owner": USER}
    for prompt in run["workload"]["prompts"]:
        prompt |= {"prompt": PROMPT, "sampling": {**prompt["sampling"], "stop": [STOP]}}
    for result in (one for found in manifest["passes"].values() for one in found["requests"]):
        result |= {"text": PROMPT, "stop_reason": STOP}
    path.write_bytes(write_manifest({k: v for k, v in manifest.items() if k != "check"}))
    for file in source.glob("*.seg"):
        _plant_segment(file)


def _plant_segment(file: Path) -> None:
    segment = SegmentReader(file)
    out = file.with_suffix(".new")
    meta = {**segment.meta, "model": f"{HOME}/models/private-thing", "served": [CLIENT], "host": HOST}
    writer = SegmentWriter(out, {**meta, "engine": {"name": USER, "environment": {VARIABLE: VALUE}}})
    first, *others = segment.sites.values()
    writer.sites([replace(first, config={**first.config, "kept_in": f"{HOME}/x", "made for": USER}), *others])
    for step in segment.steps():
        calls = []
        for call in step.calls:
            inputs, outputs = (
                {
                    i: writer.add(TensorBytes(v.dtype, v.shape, v.strides, v.load(), v.storage, v.start))
                    for i, v in enumerate(side)
                }
                for side in (call.inputs, call.outputs)
            )
            slot = segment.sites[call.site].slot
            calls.append(CallOfStep(slot, call.number, call.rows_in, call.rows_out, inputs, outputs, {}, call.fed))
        asked = [Request(0, 0, tuple(TOKENS), {"stop": [STOP], "top_p": 0.5}, CLIENT)] if step.number == 0 else []
        writer.commit(step.number, step.rows, calls, step.sampled, [f"Seen at {HOST} in {HOME}/x."], asked)
    writer.close({"ended": f"at {HOST}", "dropped": 0})
    segment.close()
    out.replace(file)


@pytest.fixture
def pair(tracereplay: Program, tmp_path: Path) -> tuple[Path, Path]:
    """A golden trace and a candidate with all of it in them, of a model in somebody's home."""
    home = tmp_path / "home" / USER
    home.mkdir(parents=True)
    model = make_model(home / "private-thing")
    lines = [{"prompt_token_ids": TOKENS, "max_tokens": 6}, {"prompt_token_ids": OTHERS, "max_tokens": 5}]
    prompts = write(tmp_path / "p.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    golden, candidate = home / "golden.trace", home / "candidate.trace"
    given = ("--engine", "toy", "--model", model, "--prompts", prompts, "-o", golden, "--logprobs", 1)
    assert tracereplay("record", *given).code == 0
    flaw = ("--set", "flaw=model.layers.1.mlp.act_fn:scale")
    assert tracereplay("replay", golden, "--engine", "toy", *flaw, "-o", candidate).code == 1
    with open_trace(golden) as trace:
        before = trace.digest()
    for path in (golden, candidate):
        planted(path)
    with open_trace(golden) as trace:  # the candidate is still a replay of it
        after = trace.digest()
    manifest = json.loads((candidate / "manifest.json").read_text())
    assert manifest["run"]["golden"] == before
    manifest["run"]["golden"] = after
    (candidate / "manifest.json").write_bytes(write_manifest({k: v for k, v in manifest.items() if k != "check"}))
    return golden, candidate


def parts(data: bytes) -> Iterator[bytes]:
    """What bytes hold that are packed into each other: deflated ones in base64, as the page has them."""
    yield data
    for found in re.findall(rb"[A-Za-z0-9+/]{40,}={0,2}", data):
        try:
            inside = base64.b64decode(found, validate=True)
            yield inside
            yield zlib.decompress(inside)
        except (ValueError, zlib.error):
            continue


def everything(path: Path, folder: Path) -> Iterator[bytes]:
    """Every byte of a bundle: the file, its members, and each frame of its traces, decoded."""
    yield path.read_bytes()
    folder.mkdir()
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield name.encode()
            yield from parts(archive.read(name))
        packs = [name for name in archive.namelist() if name.endswith(".pack")]
        archive.extractall(folder, packs)
    for name in packs:
        yield from decoded(folder / name)


def decoded(path: Path) -> Iterator[bytes]:
    with open_trace(path) as trace:
        yield json.dumps(trace.manifest, ensure_ascii=False).encode()
        for key in trace.parts:
            for _, _, data in trace.part(key).frames():
                yield bytes(data)
            yield json.dumps(trace.part(key).summary, default=repr, ensure_ascii=False).encode()


def test_they_are_found_where_they_were_planted(pair: tuple[Path, Path]) -> None:
    for path in pair:
        said = list(decoded(path))
        for text in (*ALWAYS, *TEXTS):
            assert any(text.encode() in part for part in said), text


@pytest.mark.parametrize("whole", [("--whole",), ()], ids=["whole", "reduced"])
@pytest.mark.parametrize("redact", [(), ("--redact", "prompts"), ("--redact", "tokens"), ("--redact", "values")])
def test_no_byte_names_a_person_a_place_or_a_key(
    tracereplay: Program, pair: tuple[Path, Path], tmp_path: Path, redact: tuple[str, ...], whole: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", HOME)
    monkeypatch.setenv(VARIABLE, VALUE)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr(getpass, "getuser", lambda: USER)
    out = tmp_path / "bug.zip"
    ended = tracereplay("bundle", *pair, "-o", out, *redact, *whole)
    assert ended.code == 0, ended.err
    said = list(everything(out, tmp_path / "unzipped"))
    assert any(b"model.layers.1.mlp.act_fn" in part for part in said)
    assert any(b"A note of no consequence." in part for part in said)
    for text in (*ALWAYS, str(tmp_path), *(TEXTS if redact else ())):
        assert not any(text.encode() in part for part in said), text
        assert not any(text.encode("utf-16-le") in part for part in said), text
    if not redact:
        assert any(PROMPT.encode() in part for part in said)
        assert "It holds prompts and outputs" in ended.err
    with zipfile.ZipFile(out) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    assert manifest["redacted"] == (redact[1] if redact else None)
    said_so = " ".join(manifest["removed"])
    told = ("environment variables", "paths of models", "names of engines", "ids of requests")
    for kind in (*told, "arguments: api_key, download_dir"):
        assert kind in said_so, kind


def test_without_tokens_no_form_of_one_is_anywhere(
    tracereplay: Program, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    with open_trace(pair[0]) as trace:
        answers = [one["token_ids"] for one in trace.results["record"]["requests"]]
    sequences = [TOKENS + answers[0], OTHERS + answers[1]]
    runs = [sequence[i : i + 5] for sequence in sequences for i in range(len(sequence) - 4)]
    seen = {}
    for mode in ("prompts", "tokens"):
        out = tmp_path / f"{mode}.zip"
        assert tracereplay("bundle", *pair, "-o", out, "--redact", mode, "--whole").code == 0
        said = list(everything(out, tmp_path / mode))
        seen[mode] = {
            name for run in runs for name, data in forms(run).items() if any(data in part for part in said)
        }
    assert {"int64", "JSON"} <= seen["prompts"]  # they would have been found
    assert seen["tokens"] == set()


def test_without_values_no_row_of_a_tensor_is_anywhere(
    tracereplay: Program, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    with open_trace(pair[0]) as trace:
        rows = [
            row.tobytes()
            for step in trace
            for call in step.calls
            for _, _, value in call.values()
            if value.dtype != "int64" and len(value.shape) == 2
            for row in value.numpy()[:, :8]
        ]
    assert len(rows) > 100
    for mode, found in (("prompts", True), ("values", False)):
        out = tmp_path / f"{mode}.zip"
        assert tracereplay("bundle", *pair, "-o", out, "--redact", mode, "--whole").code == 0
        said = b"\0\0".join(everything(out, tmp_path / mode))
        assert any(row in said for row in rows) is found


def test_the_same_text_has_the_same_mark_and_another_bundle_another() -> None:
    one, other = Cleaner(texts=True), Cleaner(texts=True)
    mark = one.mark("somewhere/else", "paths")
    assert re.fullmatch(r"\[removed [0-9a-f]{6}\]", mark)
    assert one.mark("somewhere/else", "paths") == mark
    assert one.mark("somewhere/elsf", "paths") != mark
    assert other.mark("somewhere/else", "paths") != mark
    assert one.removed == ["paths: 2"]


def test_a_model_that_comes_along_says_nothing_of_its_owner(
    tracereplay: Program, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    model = pair[0].parent / "private-thing"
    config = json.loads((model / "config.json").read_text())
    config |= {
        "_name_or_path": f"{HOME}/models",
        "owner": {"note": f"of {USER}"},
        "layers": [1, f"in {HOME}", "x"],
    }
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    save_file(tensors, model / "model.safetensors", {"format": "pt", "author": USER})
    out = tmp_path / "bug.zip"
    ended = tracereplay("bundle", *pair, "-o", out, "--with-weights", "--model", model)
    assert ended.code == 0, ended.err
    with zipfile.ZipFile(out) as archive:
        kept = json.loads(archive.read("model/config.json"))
        archive.extract("model/model.safetensors", tmp_path)
    assert kept == {"model_type": "toy", "owner": {}, "layers": [1, "x"]}
    copied = load_file(tmp_path / "model" / "model.safetensors")
    assert {name: array.tobytes() for name, array in copied.items()} == {
        n: a.tobytes() for n, a in tensors.items()
    }
    said = list(everything(out, tmp_path / "unzipped"))
    for text in (*ALWAYS, str(tmp_path)):
        assert not any(text.encode() in part for part in said), text


def test_kernels_say_words_and_nothing_else() -> None:
    telling = f"{HOME}/x", f"of {USER}", VALUE
    arguments = [1, 2.5, None, True, "silu", *telling, ["l", [*telling, "auto"]], ["t", 0], ["c", 1.0, 2.0]]
    kept = [["o", "dtype", "bfloat16", -1], ["x", "bfloat16", [2], "the engine's key/value cache"]]
    telling_too = [["o", "Storage", f"in {HOME}", -1], ["x", "int64", [2], f"it is in {HOME}"]]
    call = [0, 7, 0, -1, [*arguments, *kept], {"mode": f"{HOME}/y"}, telling_too, [], [], f"OSError: {HOME}/z"]
    said = {"names": [["aten.mm.default", "aten::mm(Tensor self) -> Tensor"]], "calls": [call], "constants": []}
    found = kernels_of(said, Cleaner(texts=True))
    assert USER not in json.dumps(found)
    assert VALUE not in json.dumps(found)
    assert [a for a in found["calls"][0][4] if a in arguments] == [
        1,
        2.5,
        None,
        True,
        "silu",
        ["t", 0],
        ["c", 1.0, 2.0],
    ]
    assert found["calls"][0][4][-2:] == kept
    assert found["names"] == said["names"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/x/.cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/0123456789abcdef", "Qwen/Qwen3-8B"),
        ("/data/models/Qwen3-8B", None),
        ("alice/qwen", None),
        ("./qwen", None),
    ],
)
def test_a_model_is_named_only_if_a_hub_has_it(path: str, name: str | None) -> None:
    assert hub_name(path)[0] == name
    cleaned = Cleaner(texts=True).model(path, served=False)
    assert cleaned.startswith("[removed ") if name is None else cleaned == f"{name}@0123456789abcdef"
    assert hub_name(cleaned, served=True) == (name, None if name is None else "0123456789abcdef")
