"""Golden traces in a bucket of a real S3 server: put there, listed, read by ranges, kept on this machine."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli_support import write
from program import Ended, Program
from ray_cluster import ray_cluster
from s3_server import BUCKET, S3

import tracereplay as package
from tracereplay.errors import UsageError
from tracereplay.storage.upload import upload
from tracereplay.store.cache import kept
from tracereplay.trace import open_trace

s3fs = pytest.importorskip("s3fs")

AT = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with S3().running() as running:
            patch.setenv("AWS_ENDPOINT_URL", running.url)
            s3fs.S3FileSystem.clear_instance_cache()
            yield running
            s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(server: S3) -> S3:
    """The server, with an empty bucket."""
    system = s3fs.S3FileSystem()
    if system.exists(BUCKET):
        system.rm(BUCKET, recursive=True)
    system.mkdir(BUCKET)
    system.invalidate_cache()
    server.hold = lambda request, environ: None
    s3fs.S3FileSystem.clear_instance_cache()
    server.asked.clear()
    return server


def names(s3: S3) -> list[str]:
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    return sorted(str(name).removeprefix(f"{BUCKET}/") for name in system.find(BUCKET))


@pytest.fixture
def packed(tracereplay: Program, golden: Path, s3: S3) -> str:
    url = f"{AT}/v1/decode.pack"
    ended = tracereplay("pack", golden, "-o", url)
    assert ended.code == 0, ended.err
    assert f": {url}" in ended.err
    s3.asked.clear()
    return url


def test_each_verb_reads_what_pack_put_there(tracereplay: Program, golden: Path, packed: str, s3: S3) -> None:
    assert names(s3) == ["v1/decode.pack"]
    assert tracereplay("show", packed).code == 0
    assert tracereplay("verify", packed).code == 0
    assert tracereplay("compare", golden, packed).code == 0
    assert not any(request.startswith("PUT") for request in s3.asked)
    s3.asked.clear()
    flaw = "flaw=model.layers.1.mlp.act_fn:scale"
    ended = tracereplay("replay", packed, "--engine", "toy", "--set", flaw)
    assert (ended.code, "Fetching s3://" in ended.err) == (1, True), ended.err
    assert packed in ended.out  # the next command names golden as it was given
    assert "goldens/" not in ended.out.replace(packed, "")
    assert len(s3.asked) <= 6, s3.asked
    s3.asked.clear()
    ended = tracereplay("replay", packed, "--engine", "toy")
    assert (ended.code, "Fetching" in ended.err) == (0, False), ended.err
    assert len(s3.asked) <= 4, s3.asked
    verdict = package.replay(packed, "toy")
    assert (verdict.matches, verdict.golden.trace) == (True, packed)
    assert package.replay(open_trace(packed), "toy", mode="rerun").matches


def test_what_is_there_stays_unless_it_is_a_trace_and_may_go(
    tracereplay: Program, golden: Path, packed: str, s3: S3
) -> None:
    def pack(*words: object) -> Ended:
        return tracereplay("pack", golden, *words)

    ended = pack("-o", packed)
    assert (ended.code, "already exists" in ended.err) == (2, True)
    assert pack("-o", packed, "--force").code == 0
    s3fs.S3FileSystem().pipe(f"{BUCKET}/notes.txt", b"mine")
    ended = pack("-o", f"{AT}/notes.txt", "--force")
    assert (ended.code, "is not certain to be a trace" in ended.err) == (2, True)
    ended = pack("-o", f"{AT}/v1", "--force")
    assert (ended.code, "is a folder" in ended.err) == (2, True)
    ended = tracereplay("pack", packed, "-o", packed, "--force")
    assert (ended.code, "is read by this command" in ended.err) == (2, True)
    ended = pack("-o", "s3://no-such-bucket/golden.pack")
    assert (ended.code, "cannot be written" in ended.err) == (2, True), ended.err
    ended = pack("-o", "nosuch://x/golden.pack")
    assert (ended.code, "may be missing" in ended.err) == (2, True)
    assert names(s3) == ["notes.txt", "v1/decode.pack"]


def test_what_came_to_be_there_meanwhile_stays(tmp_path: Path, s3: S3) -> None:
    def first(request: str, environ: Any) -> None:
        if request.startswith("PUT"):
            s3.hold = lambda request, environ: None
            s3fs.S3FileSystem(skip_instance_cache=True).pipe(f"{BUCKET}/a.pack", b"another's")

    s3.hold = first
    with pytest.raises(UsageError, match="already exists"):
        upload(write(tmp_path / "mine", "mine"), f"{AT}/a.pack")
    assert s3fs.S3FileSystem(skip_instance_cache=True).cat(f"{BUCKET}/a.pack") == b"another's"


def test_an_upload_that_is_killed_leaves_nothing_that_is_taken_for_a_trace(
    tracereplay: Program, tmp_path: Path, s3: S3
) -> None:
    big = tmp_path / "big.pack"
    with big.open("wb") as file:
        file.truncate(110 << 20)  # more than what s3fs puts at once
    parts, go = threading.Semaphore(0), threading.Event()

    def hold(request: str, environ: Any) -> None:
        if "partNumber=" in request:
            parts.release()
            go.wait(60)

    s3.hold = hold
    script = (
        "import sys; from pathlib import Path; from tracereplay.storage.upload import upload; "
        "upload(Path(sys.argv[1]), sys.argv[2])"
    )
    uploading = subprocess.Popen([sys.executable, "-c", script, str(big), f"{AT}/big.pack"])
    try:
        assert parts.acquire(timeout=60)
        uploading.send_signal(signal.SIGKILL)
        uploading.wait(timeout=30)
    finally:
        go.set()
        uploading.kill()
        s3.hold = lambda request, environ: None
    assert names(s3) == []
    ended = tracereplay("goldens", AT)
    assert "There is no trace below" in ended.err
    assert tracereplay("show", f"{AT}/big.pack").code == 5


def test_where_files_grow_as_they_are_written_one_is_renamed_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    mine = write(tmp_path / "mine", "mine")
    seen = []

    def put(self: Any, local: str, remote: str, **_: Any) -> None:
        self.pipe(remote, b"half")
        seen.append(remote)
        raise OSError("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", put)
        with pytest.raises(UsageError, match="the line is dead"):
            upload(mine, "memory://store/a.pack")
    system = MemoryFileSystem()
    assert [name.rpartition("/")[2].startswith(".a.pack.partial-") for name in seen] == [True]
    assert system.find("/store") == []
    upload(mine, "memory://store/a.pack")
    assert (system.find("/store"), system.cat("/store/a.pack")) == (["/store/a.pack"], b"mine")


def test_a_listing_says_what_each_trace_is_with_few_requests(
    tracereplay: Program, golden: Path, tmp_path: Path, s3: S3
) -> None:
    for name in ("a.pack", "b/c.pack", "b/d.trace"):
        assert tracereplay("pack", golden, "-o", f"{AT}/all/{name}").code == 0
    system = s3fs.S3FileSystem()
    system.put(str(golden), f"{BUCKET}/all/whole.trace", recursive=True)
    system.pipe(f"{BUCKET}/all/junk.pack", b"junk")
    system.pipe(f"{BUCKET}/all/README", b"read me")
    s3fs.S3FileSystem.clear_instance_cache()
    s3.asked.clear()
    ended = tracereplay("goldens", f"{AT}/all", "--json")
    assert ended.code == 0, ended.err
    assert len(s3.asked) <= 12, s3.asked
    assert sum("list-type=2" in request for request in s3.asked) <= 2, s3.asked
    found = json.loads(ended.out)
    assert (found["schema"], found["others"], found["left"]) == (1, 1, False)
    traces = {trace["name"]: trace for trace in found["traces"]}
    assert list(traces) == ["a.pack", "b/c.pack", "b/d.trace", "junk.pack", "whole.trace"]
    with open_trace(golden) as trace:
        for name in ("a.pack", "b/c.pack", "b/d.trace", "whole.trace"):
            one = traces[name]
            assert one["digest"] == trace.digest()
            assert (one["engine"], one["requests"], one["kind"]) == ("toy", 2, "recording")
            assert (one["began"], one["weights"]) == (trace.run.began, trace.run.weights)
            assert one["path"] == f"{AT}/all/{name}"
            with open_trace(one["path"]) as again:
                assert again.digest() == one["digest"]
    assert "is not a trace" in traces["junk.pack"]["error"]
    shown = tracereplay("goldens", f"{AT}/all").out
    assert f"digest {traces['a.pack']['digest']}" in shown
    assert "and 1 other files" in shown


def test_a_folder_is_listed_alike(tracereplay: Program, golden: Path, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    assert tracereplay("pack", golden, "-o", tmp_path / "all" / "a.pack").code == 0
    (tmp_path / "all" / "link.pack").symlink_to(tmp_path / "all" / "a.pack")
    golden.rename(tmp_path / "all" / "golden.trace")
    found = json.loads(tracereplay("goldens", tmp_path / "all", "--json").out)
    assert [(trace["name"], trace["requests"]) for trace in found["traces"]] == [
        ("a.pack", 2),
        ("golden.trace", 2),
    ]
    assert len({trace["digest"] for trace in found["traces"]}) == 1
    ended = tracereplay("goldens", tmp_path / "none")
    assert (ended.code, "There is no folder" in ended.err) == (5, True)
    (tmp_path / "all" / "a.pack").write_bytes((tmp_path / "all" / "a.pack").read_bytes()[:-7])
    ended = tracereplay("goldens", tmp_path / "all")
    assert (ended.code, "is truncated" in ended.out) == (0, True)


def test_a_damaged_entry_is_fetched_again(tracereplay: Program, packed: str, home: Path, s3: S3) -> None:
    words = ("replay", packed, "--engine", "toy")
    assert tracereplay(*words).code == 0
    (entry,) = (home / "goldens").glob("*.pack")
    assert entry.stat().st_mode & 0o077 == 0
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes(data)
    ended = tracereplay(*words)
    assert (ended.code, "Fetching" in ended.err) == (0, True), ended.err
    assert [path.name for path in (home / "goldens").glob("*.pack")] == [entry.name]
    assert "Fetching" not in tracereplay(*words).err


def test_another_trace_of_the_same_digest_takes_nobodys_place(
    tracereplay: Program, golden: Path, packed: str, home: Path, tmp_path: Path
) -> None:
    with kept(packed) as path:
        first = path.read_bytes()
    ended = tracereplay("pack", golden, "-o", f"{AT}/liar.pack", "--level", 3)
    assert ended.code == 0, ended.err
    with kept(f"{AT}/liar.pack") as path:
        assert path.read_bytes() != first
    with kept(packed) as path:
        assert path.read_bytes() == first
    s3fs.S3FileSystem().copy(packed, f"{AT}/copy.pack")
    with kept(f"{AT}/copy.pack") as path:
        assert path.read_bytes() == first
    assert len(list((home / "goldens").glob("*.pack"))) == 3  # who says the same is not believed to be the same


def test_what_was_used_longest_ago_goes_first_and_nothing_that_is_in_use(
    packed: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEREPLAY_GOLDENS", "2MB")
    folder = home / "goldens"
    folder.mkdir()
    for age, name in enumerate(("new", "used", "old")):
        (folder / f"{name}.pack").write_bytes(bytes(900_000))
        os.utime(folder / f"{name}.pack", (1e9 - age, 1e9 - age))
    with (folder / "old.pack").open("rb") as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        with kept(packed) as path:
            assert path.exists()
    assert sorted(p.stem for p in folder.glob("*.pack") if p != path) == ["new", "old"]
    monkeypatch.setenv("TRACEREPLAY_GOLDENS", "lots")
    with pytest.raises(UsageError, match="TRACEREPLAY_GOLDENS lots is no amount"), kept(packed):
        pass


def test_processes_and_threads_that_want_the_same_at_once_fetch_it_once(packed: str, s3: S3) -> None:
    s3.hold = lambda request, environ: time.sleep(0.3)  # so that nobody is done before others begin
    script = "import sys; from tracereplay.store.cache import kept\nwith kept(sys.argv[1], print) as p: print(p)"
    several = [
        subprocess.Popen([sys.executable, "-c", script, packed], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [one.communicate(timeout=60)[0].splitlines() for one in several]
    assert sum(line.startswith("Fetching") for lines in said for line in lines) == 1
    assert len({lines[-1] for lines in said}) == 1
    s3.hold = lambda request, environ: None

    def use(number: int) -> str:
        with kept(packed) as path, open_trace(path) as trace:
            return trace.digest()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(use, range(16)))) == 1


def test_a_row_is_checked_against_a_bucket_and_updated_there(
    tracereplay: Program, golden: Path, packed: str, tmp_path: Path, s3: S3
) -> None:
    rows = [f'[[check]]\ngolden = "{packed}"\nengine = "toy"\nname = "{name}"\n' for name in "abc"]
    file = write(tmp_path / "checks.toml", "\n".join(rows))
    ended = tracereplay("check", file)
    assert (ended.code, ended.err.count("Fetching")) == (0, 1), ended.err
    assert len(s3.asked) <= 6, s3.asked
    text = f'[[check]]\ngolden = "{packed}"\nengine = "toy"\nname = "a"\nsettings = {{noise = 0.5}}\n'
    write(file, text)
    assert tracereplay("check", file).code == 1
    ended = tracereplay("check", file, "--update", "--reason", "noise is fine")
    assert ended.code == 0, ended.err
    assert names(s3) == ["v1/decode.pack"]
    with open_trace(golden) as before, open_trace(packed) as after:
        assert before.digest() != after.digest()
        assert f'golden = "{packed}"' in (tmp_path / "checks.lock").read_text()
        assert after.digest() in (tmp_path / "checks.lock").read_text()


def test_prompts_make_a_golden_in_a_bucket(
    tracereplay: Program, model: Path, prompts: Path, tmp_path: Path, s3: S3
) -> None:
    row = f'golden = "{AT}/new.pack", engine = "toy", model = "{model}", prompts = "{prompts}", max_tokens = 3'
    file = write(tmp_path / "checks.toml", f"check = [{{{row}}}]")
    ended = tracereplay("check", file)
    assert (ended.code, "There is no trace at" in ended.out) == (5, True), ended.out
    assert tracereplay("check", file, "--update", "--reason", "the first").code == 0
    assert names(s3) == ["new.pack"]
    assert tracereplay("check", file).code == 0


def test_the_nodes_of_a_cluster_fetch_by_url(
    tracereplay: Program, packed: str, home: Path, tmp_path: Path
) -> None:
    rows = [f'[[check]]\ngolden = "{packed}"\nengine = "toy"\nname = "{name}"\n' for name in "ab"]
    file = write(tmp_path / "checks.toml", "\n".join(rows))
    with ray_cluster() as address:
        assert not (home / "goldens").exists()
        ended = tracereplay("check", file, "--ray", address, "--format", "json")
    assert ended.code == 0, ended.out
    found = json.loads(ended.out)["checks"]
    assert [check["verdict"]["golden"]["trace"] for check in found] == [packed, packed]
    assert len(list((home / "goldens").glob("*.pack"))) == 1
