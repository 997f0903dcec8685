"""``tracereplay bundle``: one file that shows what two traces show, and whoever has the model sees the same."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import make_model
from program import Program

from tracereplay.bundle import Redaction, check_bundle, make_bundle
from tracereplay.bundle.manifest import MANIFEST
from tracereplay.errors import BadBundle, UsageError
from tracereplay.trace import open_trace
from tracereplay.verdict import Verdict

FIXTURES = Path(__file__).parents[2] / "fixtures"
FLAW = "model.layers.1.mlp.act_fn"
ALWAYS = {"README.md", "report.html", "verdict.json", "golden.pack", "environment/golden.txt",
          "environment/candidate.txt", MANIFEST}  # fmt: skip


@pytest.fixture
def candidate(tracereplay: Program, golden: Path, tmp_path: Path) -> Path:
    """A replay with a planted fault."""
    words = ("--engine", "toy", "--set", f"flaw={FLAW}:scale", "-o", tmp_path / "candidate.trace")
    assert tracereplay("replay", golden, *words).code == 1
    return tmp_path / "candidate.trace"


@pytest.fixture
def bundle(tracereplay: Program, golden: Path, candidate: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(*words: object) -> Path:
        out = tmp_path / "bug.zip"
        ended = tracereplay("bundle", golden, candidate, "-o", out, *words)
        assert ended.code == 0, ended.err
        return out

    return make


def place(verdict: dict[str, Any]) -> tuple[Any, ...]:
    first = verdict["first_divergence"]
    where = (first["kind"], first["site"], first["class"]) if first else ()
    return verdict["verdict"], verdict["cause"], *where


def names(path: Path) -> set[str]:
    return set(zipfile.ZipFile(path).namelist())


def said(path: Path, name: str) -> str:
    return zipfile.ZipFile(path).read(name).decode()


def test_a_bundle_shows_what_was_seen_and_a_replay_of_it_shows_the_same(
    tracereplay: Program, bundle: Callable[..., Path], model: Path
) -> None:
    path = bundle()
    assert names(path) == ALWAYS
    checked = tracereplay("bundle", "--check", path)
    assert (checked.code, "is intact: 7 files" in checked.err) == (0, True), checked.err
    verdict = json.loads(said(path, "verdict.json"))
    assert place(verdict) == ("diverged", "operator", "operator", FLAW, "exceeds")
    words = ("--engine", "toy", "--model", model, "--set", f"flaw={FLAW}:scale", "--json", "-")
    again = tracereplay("replay", path, *words)
    assert again.code == 1
    assert place(again.verdict) == place(verdict)
    assert again.verdict["golden"]["trace"] == str(path)
    assert tracereplay("replay", path, "--engine", "toy", "--model", model).code == 0  # without the fault


def test_its_readme_says_what_a_maintainer_needs(bundle: Callable[..., Path], golden: Path) -> None:
    path = bundle()
    text = said(path, "README.md")
    assert text.startswith("# SiluAndMul computes something else than in golden")
    assert f"where: {FLAW}; request " in text
    assert "tracereplay replay bug.zip --engine mine --model DIR" in text
    with open_trace(golden) as trace:
        assert f"`{trace.run.weights}`" in text
    for name in ALWAYS:
        assert f"| `{name}` |" in text or name == "README.md"
    manifest = json.loads(said(path, MANIFEST))
    assert manifest["verdict"] == manifest["whole"]
    assert set(manifest["files"]) == ALWAYS - {MANIFEST}
    assert "arguments: flaw" in manifest["removed"]  # it is not among what a trace may ask for
    assert any("reproduced" in line for line in manifest["absent"])  # the toy's operators have no reproducer


def test_a_bundle_is_a_trace_that_every_verb_reads_and_none_replaces(
    tracereplay: Program, bundle: Callable[..., Path], candidate: Path, prompts: Path, model: Path
) -> None:
    path = bundle()
    before = path.read_bytes()
    assert tracereplay("show", path).code == 0
    assert tracereplay("verify", path).code == 0
    ended = tracereplay("record", "--engine", "toy", "--model", model, "--prompts", prompts, "-o", path, "--force")
    assert (ended.code, "is a bundle, and not only a trace" in ended.err) == (2, True)
    assert path.read_bytes() == before


def test_another_file_is_not_replaced_and_a_bundle_is(
    tracereplay: Program, bundle: Callable[..., Path], golden: Path, candidate: Path, tmp_path: Path
) -> None:
    path = bundle()
    assert tracereplay("bundle", golden, candidate, "-o", path).code == 0
    other = tmp_path / "photos.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.png", b"a")
    ended = tracereplay("bundle", golden, candidate, "-o", other)
    assert (ended.code, "is not a bundle written by bundle -o" in ended.err) == (2, True)


def test_one_that_would_be_too_large_is_not_written(golden: Path, candidate: Path, tmp_path: Path) -> None:
    out = tmp_path / "bug.zip"
    with pytest.raises(UsageError, match=r"would take [\d,]+ bytes, and 5,000 are allowed \(--max-size\)"):
        make_bundle(golden, candidate, out, max_size=5000)
    assert list(tmp_path.glob("*bug*")) == []


def rezipped(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The same archive with other contents, whatever its manifest says."""
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        files = {name: archive.read(name) for name in infos}
    change(files)
    out = path.with_name("changed.zip")
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            known = infos.get(name)
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = known.compress_type if known else zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return out


def test_a_changed_bundle_is_refused_before_anything_is_made_of_it(
    tracereplay: Program, bundle: Callable[..., Path], model: Path
) -> None:
    path = bundle()
    for name in sorted(ALWAYS - {MANIFEST}):

        def flip(files: dict[str, bytes], name: str = name) -> None:
            files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])

        changed = rezipped(path, flip)
        for words in (("bundle", "--check", changed), ("replay", changed, "--engine", "toy", "--model", model)):
            ended = tracereplay(*words)
            assert (ended.code, ended.err.count("\n")) == (5, 1), (name, ended.err)
            assert "damaged or was changed" in ended.err


def test_files_that_are_not_listed_or_lacking_are_refused(bundle: Callable[..., Path]) -> None:
    path = bundle()
    with pytest.raises(BadBundle, match=r"holds run\.sh, which its manifest does not list"):
        check_bundle(rezipped(path, lambda files: files.update({"run.sh": b"echo"})))
    with pytest.raises(BadBundle, match=r"lacks report\.html"):
        check_bundle(rezipped(path, lambda files: files.pop("report.html") and None))

    def listed(files: dict[str, bytes]) -> None:
        manifest = json.loads(files[MANIFEST])
        manifest["files"]["run.sh"] = {"size": 4, "sha256": "0" * 64}
        files |= {"run.sh": b"echo", MANIFEST: json.dumps(manifest).encode()}

    with pytest.raises(BadBundle, match="which no bundle has"):
        check_bundle(rezipped(path, listed))

    def later(files: dict[str, bytes]) -> None:
        files[MANIFEST] = json.dumps({**json.loads(files[MANIFEST]), "schema": 2}).encode()

    with pytest.raises(BadBundle, match="later version"):
        check_bundle(rezipped(path, later))


def hostile(path: Path, name: str, data: bytes = b"x", mode: int = 0o100644) -> None:
    """Adds a file that no bundle has to an archive."""
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, mode << 16
        archive.writestr(info, data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "data", "mode", "why"),
    [
        ("../../.bashrc", b"x", 0o100644, "names are like report.html"),
        ("/etc/cron.d/x", b"x", 0o100644, "names are like report.html"),
        ("model/config.json", b"/etc/passwd", 0o120777, "is a link"),
        ("golden.pack", b"x", 0o100644, "two files named golden.pack"),
        ("statistics.json", bytes(100 << 20), 0o100644, "more than is read"),
    ],
)
def test_a_hostile_archive_is_refused_by_every_verb_in_a_sentence(
    tracereplay: Program, bundle: Callable[..., Path], model: Path, name: str, data: bytes, mode: int, why: str
) -> None:
    path = bundle()
    hostile(path, name, data, mode)
    for words in (
        ("bundle", "--check", path), ("replay", path, "--engine", "toy", "--model", model), ("show", path),
        ("verify", path), ("compare", path, path), ("replay", path, "--engine", "toy", "--use-bundled-weights"),
    ):  # fmt: skip
        ended = tracereplay(*words)
        assert (ended.code, ended.out, ended.err.count("\n")) == (5, "", 1), (words, ended.err)
        assert why in ended.err


def test_without_tokens_it_is_compared_and_not_generated_again(
    tracereplay: Program, bundle: Callable[..., Path], model: Path, tmp_path: Path
) -> None:
    path = bundle("--redact", "tokens")
    assert names(path) == {*ALWAYS, "candidate.pack"}
    assert tracereplay("bundle", "--check", path).code == 0
    ended = tracereplay("replay", path, "--engine", "toy", "--model", model)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "was made without tokens (bundle --redact tokens), so it cannot be generated again" in ended.err
    zipfile.ZipFile(path).extractall(tmp_path / "unzipped", ["golden.pack", "candidate.pack"])
    pair = tmp_path / "unzipped" / "golden.pack", tmp_path / "unzipped" / "candidate.pack"
    compared = tracereplay("compare", *pair, "--json", "-")
    assert compared.code == 1
    assert place(compared.verdict) == place(json.loads(said(path, "verdict.json")))
    assert place(compared.verdict)[3] == FLAW
    ended = tracereplay("replay", pair[0], "--engine", "toy", "--model", model)
    assert (ended.code, "cannot be generated again" in ended.err) == (2, True)


def test_what_is_left_out_may_change_what_it_shows_and_it_says_so(
    tracereplay: Program, golden: Path, tmp_path: Path
) -> None:
    candidate = tmp_path / "other.trace"
    flaw = "--set", "flaw=model.layers.0.mlp.act_fn:scale"
    assert tracereplay("replay", golden, "--engine", "toy", *flaw, "-o", candidate).code == 1
    ended = tracereplay("bundle", golden, candidate, "-o", tmp_path / "bug.zip", "--redact", "tokens")
    assert ended.code == 0, ended.err
    assert "What was left out changes what it shows" in ended.err
    manifest = json.loads(said(tmp_path / "bug.zip", MANIFEST))
    assert manifest["whole"]["first_divergence"]["site"] == "model.layers.0.mlp.act_fn"
    assert manifest["verdict"] != manifest["whole"]
    assert "With nothing left out, the two traces show: `diverged" in said(tmp_path / "bug.zip", "README.md")


def test_without_values_there_are_statistics_and_tokens_are_compared(
    tracereplay: Program, bundle: Callable[..., Path], golden: Path, model: Path
) -> None:
    path = bundle("--redact", "values", "--whole")
    assert names(path) == {*ALWAYS, "statistics.json", "errors.json"}
    rows = json.loads(said(path, "statistics.json"))
    with open_trace(golden) as trace:
        call = next(call for step in trace for call in step.calls if call.site == FLAW)
        outputs = [call.outputs[0] for step in trace for call in step.calls if call.site == FLAW]
        elements = [float(x) for value in outputs for x in value.numpy().reshape(-1)]
    row = next(r for r in rows["golden"] if (r["site"], r["side"], r["index"]) == (FLAW, "out", 0))
    assert row["elements"] == len(elements)
    assert row["mean"] == pytest.approx(sum(elements) / len(elements))
    assert (row["min"], row["max"]) == (min(elements), max(elements))
    assert call.site in json.loads(said(path, "errors.json"))["operators"]
    with open_trace(path) as trace:
        assert sum(len(step.calls) for step in trace) == 0
        assert sum(len(step.sampled) for step in trace) > 0
    ended = tracereplay("replay", path, "--engine", "toy", "--model", model)
    assert (ended.code, "give --mode rerun" in ended.err) == (2, True)
    again = tracereplay("replay", path, "--engine", "toy", "--model", model, "--mode", "rerun", "--json", "-")
    assert again.verdict["tokens"]["compared"] > 0
    wrong = ("--engine", "toy", "--model", model, "--mode", "rerun", "--set", "flaw=sampler:second", "--json", "-")
    assert tracereplay("replay", path, *wrong).verdict["tokens"]["first_divergence"] is not None


def test_a_small_model_comes_along_if_asked_for_and_is_used_if_asked_for(
    tracereplay: Program, bundle: Callable[..., Path], model: Path
) -> None:
    path = bundle("--with-weights")
    assert {"model/config.json", "model/model.safetensors"} <= names(path)
    assert "(`--use-bundled-weights`)" in said(path, "README.md")
    shutil.rmtree(model)
    ended = tracereplay("replay", path, "--engine", "toy")
    assert (ended.code, "say with --model where it is now" in ended.err) == (2, True), ended.err
    assert tracereplay("replay", path, "--engine", "toy", "--use-bundled-weights").code == 0

    def asks_for_code(files: dict[str, bytes]) -> None:
        config = {**json.loads(files["model/config.json"]), "auto_map": {"AutoModel": "code.Model"}}
        files["model/config.json"] = json.dumps(config).encode()
        manifest = json.loads(files[MANIFEST])
        manifest["files"]["model/config.json"] = {
            "size": len(files["model/config.json"]),
            "sha256": hashlib.sha256(files["model/config.json"]).hexdigest(),
        }
        files[MANIFEST] = json.dumps(manifest).encode()

    changed = rezipped(path, asks_for_code)
    ended = tracereplay("replay", changed, "--engine", "toy", "--use-bundled-weights")
    assert (ended.code, "asks for code" in ended.err) == (5, True)


def test_other_weights_in_a_bundle_are_noticed(
    tracereplay: Program, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    path = bundle("--with-weights")
    other = (make_model(tmp_path / "other", "other") / "model.safetensors").read_bytes()

    def swap(files: dict[str, bytes]) -> None:
        files["model/model.safetensors"] = other
        manifest = json.loads(files[MANIFEST])
        listed = {"size": len(other), "sha256": hashlib.sha256(other).hexdigest()}
        manifest["files"]["model/model.safetensors"] = listed
        files[MANIFEST] = json.dumps(manifest).encode()

    ended = tracereplay("replay", rezipped(path, swap), "--engine", "toy", "--use-bundled-weights", "--json", "-")
    assert (ended.code, ended.verdict["cause"]) == (3, "setting")


def test_less_is_kept_unless_all_is_asked_for(
    tracereplay: Program, bundle: Callable[..., Path], golden: Path, model: Path
) -> None:
    path = bundle()
    with open_trace(path) as small, open_trace(golden) as whole:
        assert sum(len(step.rows) for step in small) < sum(len(step.rows) for step in whole) / 3
    manifest = json.loads(said(path, MANIFEST))
    assert any("there are 1 request, 1 token" in line for line in manifest["reduced"])
    assert manifest["verdict"] == manifest["whole"]
    with open_trace(bundle("--whole")) as same, open_trace(golden) as whole:
        assert [step.rows.tolist() for step in same] == [step.rows.tolist() for step in whole]
    flawed = bundle("--engine", "toy", "--set", f"flaw={FLAW}:scale", "--model", model)
    manifest = json.loads(said(flawed, MANIFEST))
    assert manifest["verdict"] == manifest["whole"]


def test_tokens_of_kernels_cannot_be_left_out_which_is_said_of_the_users_own_trace(
    tracereplay: Program, tmp_path: Path
) -> None:
    kernels = FIXTURES / "tiny-llama-v0-kernels.trace"
    ended = tracereplay("bundle", kernels, kernels, "-o", tmp_path / "bug.zip", "--redact", "tokens", "--whole")
    assert (ended.code, f"{kernels} has kernels" in ended.err) == (2, True), ended.err
    assert tracereplay("bundle", kernels, kernels, "-o", tmp_path / "bug.zip", "--whole").code == 0
    with open_trace(tmp_path / "bug.zip") as trace:
        assert any(len(step.kernels) for step in trace)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("a", "b", "-o", "bug.zip", "--whole", "--engine", "toy"), "--whole makes nothing smaller"),
        (("a", "b", "-o", "bug.zip", "--redact", "tokens", "--engine", "toy"), "No engine can replay"),
        ((), "Give GOLDEN, CANDIDATE and -o FILE.zip"),
        (("golden.trace", "candidate.trace"), "Give GOLDEN, CANDIDATE and -o FILE.zip"),
        (("golden.trace", "candidate.trace", "-o", "nowhere/bug.zip"), "the directory"),
        (("--check", "bug.zip", "--redact", "tokens"), "--check reads a bundle and makes none; leave out --red"),
        (("--check", "missing.zip"), "There is no bundle at missing.zip"),
        (("a", "b", "-o", "bug.zip", "--max-size", "big"), "--max-size big is no amount of bytes"),
        (("a", "b", "-o", "bug.zip", "--engine", "nobody"), "no engine named 'nobody'"),
    ],
)
def test_what_is_asked_for_wrongly_is_said_in_a_sentence(
    tracereplay: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = tracereplay("bundle", *words)
    assert (ended.code, ended.err.count("\n"), says in ended.err) == (2, 1, True), ended.err


def test_bundled_weights_are_for_bundles(tracereplay: Program, golden: Path) -> None:
    ended = tracereplay("replay", golden, "--engine", "toy", "--use-bundled-weights")
    assert (ended.code, "is for bundles" in ended.err) == (2, True)


def test_every_redaction_makes_a_verdict_that_is_read_again(golden: Path, candidate: Path, tmp_path: Path) -> None:
    for redaction in (None, *Redaction):
        out = tmp_path / f"{redaction}.zip"
        made = make_bundle(golden, candidate, out, max_size=1 << 24, redaction=redaction)
        found = check_bundle(out)
        assert found.contents == made.contents
        assert found.verdict == Verdict.from_dict(json.loads(said(out, "verdict.json"))) or redaction
