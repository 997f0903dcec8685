"""``check --jobs`` and ``check --ray``: several toy engines at once, on threads and in a real cluster of Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from cli_support import write
from program import Ended, Program
from ray_cluster import ray_cluster
from test_interrupt import PROGRAM, alive, wait_until

from tracereplay.trace import open_trace

FLAW = 'settings = {flaw = "model.layers.1.mlp.act_fn:scale"}'
Run = Callable[..., Ended]


@pytest.fixture
def file(golden: Path, tmp_path: Path) -> Callable[..., Path]:
    def made(*rows: str) -> Path:
        tables = [f'[[check]]\ngolden = "{golden.name}"\nengine = "toy"\n{row}\n' for row in rows]
        return write(tmp_path / "checks.toml", "\n".join(tables))

    return made


@pytest.fixture
def run(tracereplay: Program, file: Callable[..., Path]) -> Run:
    return lambda *rows, words=(): tracereplay("check", file(*rows), *words)


def first_words(ended: Ended, rows: int) -> list[str]:
    return [line.split()[0] for line in ended.out.splitlines()[1 : rows + 1]]


# -- here -------------------------------------------------------------------------------------------------------


def test_results_are_in_the_files_order_whoever_is_first(run: Run, tmp_path: Path) -> None:
    rows = ('name = "a"', f'name = "b"\nexpect = "diverged"\n{FLAW}', 'name = "c"', 'name = "d"\nmode = "rerun"')
    log = tmp_path / "engines.log"
    ended = run(*rows, words=("--jobs", 2, "--log", log))
    assert ended.code == 0, ended.out
    assert first_words(ended, 4) == ["a", "b", "c", "d"]
    assert "4 checks: all as expected" in ended.out
    assert ended.err.count("Starting the engine toy") == 2  # a, c and d share one
    for number in (1, 2):
        assert log.with_name(f"engines.log.{number}").read_bytes().startswith(b"# tracereplay: the engine ")
    assert not log.exists()


def test_rows_of_one_engine_are_shared_out(run: Run) -> None:
    ended = run(*(f'name = "{name}"' for name in "abcd"), words=("--jobs", 3))
    assert ended.code == 0, ended.out
    assert ended.err.count("Starting the engine toy") == 3


def interrupted(words: Sequence[str], hangs: Sequence[Path]) -> tuple[list[int], str]:
    """Runs the program until its engines hang, and interrupts it: the processes in ``hangs``, and what it says."""
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stderr=subprocess.PIPE, text=True)
    try:
        for path in hangs:
            wait_until(path.exists, 60)
        pids = [int(pid) for path in hangs for pid in path.read_text().split()]
        assert all(map(alive, pids))
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 130, err
    assert "Traceback" not in err
    return pids, err


def test_engines_run_at_the_same_time(run: Run, tmp_path: Path, file: Callable[..., Path]) -> None:
    """Each hangs until the other is there, too: nobody would end if they ran in turn."""
    hangs = [tmp_path / name for name in ("one", "two")]
    words = [
        "check",
        str(file(*(f'name = "{p.name}"\nsettings = {{hangs = "{p}"}}' for p in hangs))),
        "--jobs",
        "2",
    ]
    pids, err = interrupted(words, hangs)
    assert err.count("Starting the engine") == 2  # none is started again because it was killed
    wait_until(lambda: not any(map(alive, pids)), 5)


def test_an_engine_that_dies_is_tried_once_more(run: Run, tmp_path: Path) -> None:
    dies = 'settings = {dies = "generating"}'
    ended = run('name = "a"', f'name = "b"\n{dies}', words=("--jobs", 2, "--keep", tmp_path / "kept"))
    assert ended.code == 4
    assert ended.err.count("b: Starting the engine toy") == 2
    assert ended.out.count("| the toy engine ran out of luck") == 1
    assert "2 checks: 1 not as expected" in ended.out


def test_a_start_that_failed_twice_is_not_tried_for_other_rows(run: Run) -> None:
    dies = 'settings = {dies = "loading"}'
    rows = (f'name = "a"\n{dies}', f'name = "b"\n{dies}', f'name = "c"\n{FLAW}', 'name = "d"')
    ended = run(*rows, words=("--jobs", 2))
    assert ended.err.count("a: Starting the engine toy") == 2
    assert "b: Starting" not in ended.err
    assert ended.out.count("cannot load its model") >= 2


def test_what_makes_no_sense_together_is_refused(run: Run, tmp_path: Path) -> None:
    for words, said in (
        (("--ray", "auto", "--jobs", 2), "leave out --jobs"),
        (("--ray", "auto", "--log", tmp_path / "x.log"), "leave out --log"),
        (("--resource", "gpu=1"), "add --ray ADDRESS"),
        (("--update", "--reason", "x", "--jobs", 2), "leave out --jobs"),
        (("--ray", "auto", "--resource", "gpu=some"), "is no amount"),
    ):
        ended = run('name = "a"', words=words)
        assert (ended.code, said in ended.err) == (2, True), ended.err
    ended = run('name = "a"\nresources = {gpu = "one"}')
    assert (ended.code, "a table of amounts" in ended.err) == (2, True)


# -- on a cluster -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with ray_cluster() as address:
        yield address


def test_a_cluster_runs_rows_and_gives_back_what_is_kept(cluster: str, run: Run, tmp_path: Path) -> None:
    rows = (
        'name = "a"', f'name = "b"\nexpect = "diverged"\n{FLAW}', 'name = "c"\nresources = {shelf = 1}',
        'name = "d"\nsettings = {no_such_argument = 1}',
    )  # fmt: skip
    ended = run(*rows, words=("--ray", cluster, "--keep", tmp_path / "kept"))
    assert ended.code == 2, ended.out + ended.err
    assert first_words(ended, 4) == ["a", "b", "c", "d"]
    assert "4 checks: 1 not as expected" in ended.out
    assert "no_such_argument" in ended.out
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == ["1-a.json", "1-a.trace", "2-b.json", "2-b.trace", "3-c.json", "3-c.trace"]
    with open_trace(tmp_path / "kept" / "2-b.trace") as trace:
        assert (trace.packed, trace.run.kind) == (True, "replay")
    assert json.loads((tmp_path / "kept" / "2-b.json").read_text())["verdict"] == "diverged"
    assert left_behind() == []


def test_a_worker_that_dies_is_replaced_once(cluster: str, run: Run, tmp_path: Path) -> None:
    hangs = tmp_path / "pids"
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        """Each worker as soon as its engine generates."""
        while not over.is_set():
            if hangs.exists():
                engine, left = map(int, hangs.read_text().split())
                hangs.unlink()
                worker = parent_of(engine)
                os.kill(worker, signal.SIGKILL)
                os.kill(left, signal.SIGKILL)  # which a closed engine would have ended
                killed.append(worker)
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        ended = run('name = "a"', f'name = "b"\nsettings = {{hangs = "{hangs}"}}', words=("--ray", cluster))
    finally:
        over.set()
        killer.join()
    assert ended.code == 4, ended.out
    assert len(killed) == 2
    assert ended.err.count("b: its worker died") == 2
    assert ended.err.count("tried once more") == 1
    assert "in the cluster died 2 times" in ended.out
    assert "2 checks: 1 not as expected" in ended.out
    assert left_behind() == []


def test_an_engine_that_dies_there_is_tried_once_more(cluster: str, run: Run) -> None:
    ended = run('name = "a"\nsettings = {dies = "generating"}', words=("--ray", cluster))
    assert ended.code == 4
    assert "| the toy engine ran out of luck" in ended.out


def test_where_no_cluster_is_a_sentence_says_so(run: Run) -> None:
    pytest.importorskip("ray")
    ended = run('name = "a"', words=("--ray", "127.0.0.1:1"))
    assert ended.code == 2
    assert "There is no cluster of Ray at 127.0.0.1:1" in ended.err
    assert "Traceback" not in ended.err


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def left_behind() -> list[str]:
    """Directories of workers that are gone."""
    temporary = Path(tempfile.gettempdir())
    return [str(path) for path in temporary.glob("tracereplay-*") if (path / "engine.log").exists()]


def test_an_interrupt_ends_what_runs_on_a_cluster(cluster: str, file: Callable[..., Path], tmp_path: Path) -> None:
    hangs = tmp_path / "pids"
    words = ["check", str(file(f'name = "a"\nsettings = {{hangs = "{hangs}"}}')), "--ray", cluster]
    (engine, left), _ = interrupted(words, [hangs])
    os.kill(left, signal.SIGKILL)
    wait_until(lambda: not alive(engine) and left_behind() == [])
