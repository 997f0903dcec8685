"""``show`` lists a trace's requests and finds one; what its clients wrote harms no terminal."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from program import Program

from tracereplay.event import Request, RowKey, Sampled, Site, make_rows
from tracereplay.trace import PendingCall, SegmentWriter, TensorBytes, TraceDirectory, segment_path
from tracereplay.trace.requests import Identity, Moment, RequestFile, record_of

TINY = Path(__file__).parents[2] / "fixtures" / "tiny-llama"
SITE = Site("model.norm", "RMSNorm", 77, ("x",))
ARRIVED = Moment(1_795_793_045_377_186_039, 10**9)
EVIL = "\x1b]0;gotcha\x07[bold]x\u202e\n"


def server(path: Path, *identities: Identity, tokens: int = 3, model: Path = TINY, shift: float = 0.0) -> Path:
    """A recorded server's trace: all requests begin in the first step, and each step gives each a token."""
    directory = TraceDirectory(path, {"kind": "recording", "notes": [], "command": ["vllm", "serve"]})
    meta = {"world": 1, "rank": 0, "model": str(model), "engine": {}, "engines": 1, "served": ["tiny", "large"]}
    writer = SegmentWriter(segment_path(path, "record", 0), meta)
    writer.sites([SITE])
    for step in range(tokens):
        keys = [RowKey(request, 0, 3 + step) for request in range(len(identities))]
        rows = make_rows([(r, s, p - 1) for r, s, p in keys])
        values = np.full((len(keys), 4), 1.0 + shift * step, np.float32)
        data = TensorBytes("float32", values.shape, (4, 1), memoryview(values.tobytes()), 0, 0)
        call = PendingCall(SITE.slot, 0, rows, rows, {0: data}, {0: data})
        token = 97 + (shift > 0 and step == 2)
        sampled = [Sampled(key, token + key.request, token + key.request, -0.5) for key in keys]
        asked = {"max_tokens": 3, "temperature": 0.0}
        begun = [Request(r, 0, (104, 105, 32), asked, one.id) for r, one in enumerate(identities)]
        writer.step(step, rows, [call], sampled, [], [] if step else begun)
    writer.close({})
    file = RequestFile(path, {})
    for identity in identities:
        file.add(record_of(identity))
    file.close()
    directory.let_go()
    return path


def one(name: str, **changes: object) -> Identity:
    ended = Moment(ARRIVED.utc + 250_000_000, ARRIVED.monotonic + 250_000_000)
    known = {"arrived": ARRIVED, "ended": ended, "reason": "length", "prompt": 3, "tokens": 3, **changes}
    return Identity(f"{name}-0-01234567", f"{name}-0" if name.startswith("cmpl-") else name, **known)  # type: ignore[arg-type]


@pytest.fixture
def served(tmp_path: Path) -> Path:
    return server(
        tmp_path / "served.trace", one("cmpl-7f"), one("chatcmpl-order-9", adapter="mine", priority=2),
        one("cmpl-7f9", reason="stop", stop="!", tokens=5, fields={"user": "alice"}),
    )  # fmt: skip


def test_requests_are_listed_with_who_asked_and_what_came_of_it(tracereplay: Program, served: Path) -> None:
    shown = tracereplay("show", served).out
    assert "requests of record, of 2026-11-27 (UTC)" in shown
    rows = [line.split() for line in shown.splitlines() if "15:24:05" in line]
    assert [row[:7] for row in rows] == [
        ["0", "cmpl-7f", "15:24:05", "0.25", "s", "3", "3"],
        ["1", "chatcmpl-order-9", "15:24:05", "0.25", "s", "3", "3"],
        ["2", "cmpl-7f9", "15:24:05", "0.25", "s", "3", "3"],
    ]
    assert rows[2][7:10] == ["of", "5", "stop"]  # two of its tokens are not in the trace


def test_the_first_are_listed_and_how_many_more_there_are(tracereplay: Program, tmp_path: Path) -> None:
    path = server(tmp_path / "many.trace", *(one(f"cmpl-{number:03}") for number in range(30)))
    shown = tracereplay("show", path).out
    assert "cmpl-019" in shown
    assert "cmpl-020" not in shown
    assert "and 10 more" in shown
    every = tracereplay("show", path, "--all").out
    assert "cmpl-029" in every
    assert "and 10 more" not in every


@pytest.mark.parametrize("text", ["2", "cmpl-7f9", "7f9", "cmpl-7f9-0-01234567", "7f9-"])
def test_one_is_found_by_its_number_or_by_how_its_id_begins(tracereplay: Program, served: Path, text: str) -> None:
    shown = tracereplay("show", served, "--request", text).out
    for words in ("request      2", "id           cmpl-7f9", 'stop, at "!"', "user         alice",
                  "2026-11-27T15:24:05.377+00:00", "0.25 s later", "tiny, large",
                  "max_tokens=3, temperature=0.0"):  # fmt: skip
        assert words in shown, shown
    assert "2 to 2" not in shown
    assert "3 of 5 tokens: 99 99 99" in shown


def test_a_site_takes_the_request_by_its_id(tracereplay: Program, served: Path) -> None:
    assert tracereplay("show", served, "model.norm", "--request", "order-9").code == 0
    ended = tracereplay("show", served, "model.norm", "--request", "order-8")
    assert (ended.code, "has no request 'order-8'" in ended.err) == (2, True)


def test_what_several_ids_begin_with_says_which(tracereplay: Program, served: Path) -> None:
    ended = tracereplay("show", served, "--request", "cmpl-7f", "--json", "-")
    assert json.loads(ended.out)["requests"][0]["request"] == 0  # a whole id is not a beginning
    ended = tracereplay("show", served, "--request", "cmpl-")
    assert ended.code == 2
    assert "begins the ids of 2 requests, cmpl-7f (request 0), cmpl-7f9 (request 2)" in ended.err


def test_json_has_the_same(tracereplay: Program, served: Path, tmp_path: Path) -> None:
    said = json.loads(tracereplay("show", served, "--json", "-").out)
    assert (said["count"], said["served_model_names"]) == (3, ["tiny", "large"])
    first, second, third = said["requests"]
    assert (first["id"], first["engine_id"], first["finish_reason"]) == ("cmpl-7f", "cmpl-7f-0-01234567", "length")
    assert (first["arrived"]["utc_ns"], first["seconds"]) == (ARRIVED.utc, 0.25)
    assert (first["prompt_token_ids"], first["token_ids"]) == ([104, 105, 32], [97, 97, 97])
    assert (second["adapter"], second["priority"]) == ("mine", 2)
    assert (third["stop"], third["tokens"], third["fields"]) == ("!", 5, {"user": "alice"})
    file = tmp_path / "requests.json"
    for _ in range(2):  # its own kind of file is replaced
        assert tracereplay("show", served, "--request", "1", "--json", file).code == 0
    detail = json.loads(file.read_text())["requests"][0]
    assert detail["logprobs"] == [-0.5] * 3
    assert detail["steps"][0] == {"step": 0, "rows": [1], "positions": [2], "calls": 1, "of": 3}
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert tracereplay("show", served, "--json", other).code == 2


def test_text_is_shown_where_the_recorded_tokenizer_is(tracereplay: Program, served: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    assert '"hi " -> "aaa"' in tracereplay("show", served, "--model", TINY).out
    assert "104 105 32 -> 97 97 97" in tracereplay("show", served).out  # it says no digest of its tokenizer
    manifest = served / "manifest.json"
    from tracereplay.trace.manifest import read_manifest, write_manifest

    said = read_manifest(manifest.read_bytes(), "manifest")
    for digest, shown in (
        ("0" * 32, "104 105 32 -> 97 97 97"),
        (_digest(TINY / "tokenizer.json"), '"hi " -> "aaa"'),
    ):
        said["run"]["model_files"] = {"tokenizer.json": digest}
        manifest.write_bytes(write_manifest({k: v for k, v in said.items() if k != "check"}))
        assert shown in tracereplay("show", served).out, digest
    ended = tracereplay("show", served, "--model", tmp_path)
    assert (ended.code, "no tokenizer.json" in ended.err) == (2, True)


def _digest(path: Path) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def test_requests_of_a_workload_have_numbers_and_ends(tracereplay: Program, golden: Path) -> None:
    shown = tracereplay("show", golden).out
    listing = shown[shown.index("requests of record") :]
    assert [line.split()[:4] for line in listing.splitlines()[2:5:2]] == [
        ["0", "4", "4", "length"], ["1", "5", "6", "length"],
    ]  # fmt: skip
    ended = tracereplay("show", golden, "--request", "cmpl-1")
    assert (ended.code, "its numbers are 0 to 1, and it names no ids" in ended.err) == (2, True)


@pytest.mark.parametrize("field", ["authorization", "api_key", "prompt", ""])
def test_only_fields_that_say_who_somebody_is_can_be_kept(
    tracereplay: Program, tmp_path: Path, field: str
) -> None:
    ended = tracereplay("record", "-o", tmp_path / "a.trace", "--keep-fields", field, "--", "true")
    assert (ended.code, "takes user, safety_identifier, metadata" in ended.err) == (2, True), ended.err
    assert not (tmp_path / "a.trace").exists()


def test_a_workload_has_no_fields_to_keep(
    tracereplay: Program, model: Path, prompts: Path, tmp_path: Path
) -> None:
    asked = "--engine", "toy", "--model", model, "--prompts", prompts, "-o", tmp_path / "a.trace"
    ended = tracereplay("record", *asked, "--keep-fields", "user")
    assert (ended.code, "leave out --keep-fields" in ended.err) == (2, True), ended.err


def test_what_a_client_wrote_is_shown_without_harm(tracereplay: Program, tmp_path: Path) -> None:
    evil = Identity(EVIL, EVIL, ARRIVED, ARRIVED, EVIL, EVIL, adapter=EVIL, fields={EVIL: EVIL})
    path = server(tmp_path / "evil.trace", evil)
    for words in ((), ("--request", "0"), ("--request", "\x1b"), ("--request", "nobody")):
        ended = tracereplay("show", path, *words)
        assert all(c.isprintable() or c == "\n" for c in ended.out + ended.err), (words, ended)
    assert "\\x1b]0;gotcha\\x07[bold]x\\u202e\\n" in tracereplay("show", path, "--request", "0").out


def test_a_verdict_says_whose_request_diverges_first(tracereplay: Program, tmp_path: Path) -> None:
    golden = server(tmp_path / "golden.trace", one("cmpl-7f"), one("chatcmpl-order-9"))
    candidate = server(tmp_path / "candidate.trace", one("cmpl-other"), one("cmpl-another"), shift=0.5)
    verdict = tracereplay("compare", golden, candidate, "--json", "-").verdict
    first, token = verdict["first_divergence"], verdict["tokens"]["first_divergence"]
    assert (first["request"], first["request_id"], first["step"]) == (0, "cmpl-7f", 1)
    assert (token["request"], token["request_id"]) == (0, "cmpl-7f")
    shown = tracereplay("compare", golden, candidate).out
    assert "request 0 (cmpl-7f), sequence 0, position" in shown
    assert "first in request 0 (cmpl-7f) at position" in shown
    file = tmp_path / "verdict.json"
    file.write_text(json.dumps(verdict))
    assert "request 0 (cmpl-7f), sequence 0" in tracereplay("report", file).out


def test_a_damaged_list_does_not_hide_the_rest(tracereplay: Program, served: Path) -> None:
    file = served / "requests-0.req"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    shown = tracereplay("show", served)
    assert (shown.code, "Its requests cannot be listed: requests-0.req is damaged" in shown.out) == (0, True)
    assert "RMSNorm" in shown.out
    assert tracereplay("show", served, "--request", "0").code == 5
    assert tracereplay("verify", served).code == 5
    shutil.rmtree(served)


def test_a_trace_says_what_it_is_when_it_was_made_and_how_it_ended(
    tracereplay: Program, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = tracereplay("show", golden).out
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in shown.partition("\n\n")[0].splitlines())
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC, in \d+ s", facts["made"])
    assert facts["ended"] == "complete"
    assert facts["trace"].startswith("recording, 6 steps, 10 tokens, 22 sites, ")
    assert facts["engine"].startswith("toy: toy ")
    assert facts["prompts"] == "2, of 4 to 5 tokens"
    assert shown.index("requests of record") < shown.index("operators of record") < shown.index("steps of record")
    assert '"hello" -> ' in shown  # a prompt that was given as text needs no tokenizer
    assert "tokens are shown by their numbers: " in shown
    manifest = golden / "manifest.json"
    from tracereplay.trace.manifest import write_manifest

    said = json.loads(manifest.read_text())
    for began, told in (("yesterday\x1b[2J", "it does not say when"), (None, "it does not say when")):
        said["run"]["began"] = began
        said["state"] = "incomplete"
        manifest.write_bytes(write_manifest({k: v for k, v in said.items() if k != "check"}))
        shown = tracereplay("show", golden).out
        assert told in shown
        assert "INCOMPLETE: it was interrupted" in shown
        assert "\x1b" not in shown
    monkeypatch.delenv("COLUMNS")  # no terminal: nothing is cut
    assert "..." not in tracereplay("show", golden, "--request", "1").out


def test_a_commands_line_and_its_arguments_are_shown(tracereplay: Program, served: Path) -> None:
    from tracereplay.trace.manifest import read_manifest, write_manifest

    manifest = served / "manifest.json"
    said = read_manifest(manifest.read_bytes(), "manifest")
    said["run"] |= {
        "command": ["vllm", "serve", EVIL],
        "engine": {"name": "e", "arguments": {"seed": 3, "x": EVIL}},
    }
    manifest.write_bytes(write_manifest({k: v for k, v in said.items() if k != "check"}))
    shown = tracereplay("show", served).out
    assert "command      vllm serve " in shown
    assert "arguments    seed=3, x=" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)
