"""Bundles of real engines: who has the file and the model sees what was seen."""

from __future__ import annotations

import ast
import http.client
import json
import os
import signal
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_support import TINY, Engines, Running, find_engine

sys.path.insert(0, str(Path(__file__).parent))

from recorded_server import MODEL, Server

from tracereplay.bundle import Redaction, check_bundle, make_bundle
from tracereplay.bundle.manifest import shown_by
from tracereplay.comparator import compare_traces
from tracereplay.trace import Trace, open_trace

pytestmark = pytest.mark.engine
MOST = 24_000_000

# fault -> kind and site of the first divergence, and whether its call can be made a script
PLACES = {
    "scale": ("operator", "model.layers.1.input_layernorm", True),
    "late_nan": ("operator", "model.layers.4.self_attn.o_proj", True),
    "scaled_residual": ("edge", "model.layers.2.post_attention_layernorm", False),
}


def again(engine: Running, bundle: Path) -> dict[str, Any]:
    """What a replay of a bundle's golden trace shows, with the user's own model."""
    with open_trace(bundle) as golden:
        return shown_by(compare_traces(golden, engine.replay(golden)))


def members(bundle: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_v0_to_v1_is_seen_again_from_its_bundle(v1: Running, golden_v0: Trace, tmp_path: Path) -> None:
    out = tmp_path / "bug.zip"
    made = make_bundle(golden_v0.path, v1.replay(golden_v0).path, out, max_size=MOST, model=TINY)
    assert made.size < MOST
    assert check_bundle(out).contents == made.contents
    assert made.contents.verdict == made.contents.whole
    assert made.contents.verdict["cause"] == "rounding"
    assert again(v1, out) == made.contents.verdict
    text = members(out)["README.md"].decode()
    assert "### Your current environment" in text
    assert "vllm=0.8.5.post2+cpu" in text
    assert "vllm=0.32.0" in text
    assert str(Path.home()) not in text


@pytest.mark.parametrize("fault", PLACES)
def test_a_fault_is_seen_again_from_its_bundle(
    v1: Running, golden_v1: Trace, plant: Callable[[str], None], tmp_path: Path, fault: str
) -> None:
    plant(fault)
    kind, site, script = PLACES[fault]
    out = tmp_path / "bug.zip"
    made = make_bundle(golden_v1.path, v1.replay(golden_v1).path, out, max_size=MOST, model=TINY)
    first = made.contents.verdict["first_divergence"]
    assert (first["kind"], first["site"]) == (kind, site)
    assert made.contents.verdict == made.contents.whole
    assert check_bundle(out).contents == made.contents
    found = members(out)
    assert ("reproducer/repro.py" in found) == script, made.contents.absent
    assert (b"\npython reproducer/repro.py" in found["README.md"]) == script
    if script:
        ast.parse(found["reproducer/repro.py"].decode())
    assert again(v1, out) == made.contents.verdict


def test_one_without_prompts_is_generated_again(
    v1: Running, golden_v1: Trace, plant: Callable[[str], None], tmp_path: Path
) -> None:
    plant("scale")
    out = tmp_path / "bug.zip"
    texts = [prompt.text for prompt in golden_v1.run.prompts if prompt.text]
    options: dict[str, Any] = {"max_size": MOST, "model": TINY, "redaction": Redaction.prompts}
    made = make_bundle(golden_v1.path, v1.replay(golden_v1).path, out, **options)
    assert texts
    assert not any(text.encode() in data for text in texts for data in members(out).values())
    assert again(v1, out) == made.contents.verdict == made.contents.whole


CLIENT, USER, STOP, SECRET = "order-4711-quuxcorp", "planted-alice", "WHISPER THIS STOP", "planted-variable-value"


def everything(bundle: Path, folder: Path) -> Iterator[bytes]:
    """Every byte of a bundle: the file, its members, and each frame of its golden trace, decoded."""
    yield bundle.read_bytes()
    yield from members(bundle).values()
    with open_trace(bundle) as trace:
        yield json.dumps(trace.manifest).encode()
        for key in trace.parts:
            yield from (bytes(data) for _, _, data in trace.part(key).frames())
            yield repr(trace.part(key).summary).encode()


@pytest.mark.long
def test_the_bundle_of_a_recorded_server_names_neither_clients_nor_the_machine(
    engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, single_process: Mapping[str, str]
) -> None:
    find_engine("v1")
    engines.stop()
    monkeypatch.setenv("VLLM_PLANTED", SECRET)
    server = Server(tmp_path / "served.trace", arguments=["--api-key", SECRET])
    try:
        server.wait_until_ready()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        for number, prompt in enumerate(("a first prompt of somebody", "another one, of somebody else")):
            body = {"model": MODEL, "prompt": prompt, "max_tokens": 6, "user": USER, "stop": [STOP]}
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {SECRET}"}
            headers["X-Request-Id"] = f"{CLIENT}-{number}"
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            assert "choices" in json.loads(connection.getresponse().read())
        server.kill(signal.SIGINT, "parent")
        server.wait()
    finally:
        server.close()
    monkeypatch.delenv("VLLM_PLANTED")
    told = (CLIENT, USER, SECRET, str(TINY), str(Path.home()), socket.gethostname(), str(tmp_path), "quuxcorp")
    told = tuple(text for text in told if len(text) > 5)
    v1 = engines.start("v1", env=single_process)
    with open_trace(server.out) as golden:
        assert any(CLIENT in str(known) for known in golden.requests)
        candidate = v1.replay(golden)
        for redaction in (None, *Redaction):
            out = tmp_path / f"{redaction}.zip"
            options: dict[str, Any] = {"max_size": MOST, "model": TINY, "redaction": redaction, "whole": True}
            made = make_bundle(golden.path, candidate.path, out, **options)
            assert made.contents.verdict == made.contents.whole, redaction
            said = list(everything(out, tmp_path))
            for text in (*told, *((STOP,) if redaction else ())):
                assert not any(text.encode() in part for part in said), (redaction, text)
            if redaction is Redaction.prompts:
                assert again(v1, out) == made.contents.whole
    assert os.path.getsize(out) < MOST
