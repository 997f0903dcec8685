"""Recorded HTTP servers that are killed at random moments under load, and what is left of them.

    python tests/engine/killed_servers.py COUNT SEED [KIND...]      prints a line of JSON for each, and their sums

What a failed one leaves (trace, log, what the clients have) is kept in a folder whose name is printed.

SIGKILL goes to one of the processes of a server, or to all of them at once, the recording parent included. Each
answer whose last byte a client has must be in the trace, token for token (with the writer killed too: each that a
client had a second before); the trace must say what was asked, be
recoverable at least, and say of itself that it is incomplete where it is. No process and no shared memory may be
left.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recorded_server import Server, compared

from tracereplay.trace import Trace, open_trace
from tracereplay.trace.verify import repair, verify

EVERYONE = ("parent", "front", "core", "worker", "writer")
KINDS = (*EVERYONE, "all")
LONGEST = 4.0  # seconds from the third answer to the kill, at most
CLIENTS = 4
UNWRITTEN = 1.0  # seconds; what a writer that is killed had been handed and had not written is lost


def killed(folder: Path, kind: str, chance: random.Random) -> dict[str, Any]:
    """One server's life and death."""
    begun = time.monotonic()
    server = Server(folder / f"{kind}.trace")
    try:
        server.wait_until_ready()
        started = time.monotonic() - begun
        server.start_clients(CLIENTS, chance)
        while sum(answer.finished for answer in server.answers) < 3:
            assert server.process.poll() is None, server.log.read_text()[-3000:]
            time.sleep(0.02)
        time.sleep(chance.random() * LONGEST)
        running, moment = server.running(), time.monotonic()
        assert all(server.family.get(name) for name in EVERYONE), server.family
        server.kill(signal.SIGKILL, *(EVERYONE if kind == "all" else (kind,)))
        if kind == "writer":  # the server goes on, unrecorded
            time.sleep(1)
            server.kill(signal.SIGTERM, "parent")
        server.wait()
        ended = time.monotonic() - moment
        left = server.left_over()
        assert left == ([], set()), (left, server.family)
        if kind in ("writer", "all"):
            server.answers = [a for a in server.answers if a.ended is not None and a.ended < moment - UNWRITTEN]
        found = check(server, kind)
    finally:
        server.close()
        (folder / "answers.json").write_text(json.dumps([dataclasses.asdict(a) for a in server.answers]))
    seconds = {"started": round(started, 1), "ended": round(ended, 1)}
    return {"kind": kind, "running": running, **found, **seconds}


def check(server: Server, kind: str) -> dict[str, int]:
    """Raises unless what is left is what the clients have, before and after it was repaired."""
    trace = open_trace(server.out)
    finished = compared(trace, server.answers)
    assert finished >= 3 or kind in ("writer", "all")
    # An engine that loses its front end ends well; where it, its writer or the parent is gone nobody can know.
    assert kind in ("front", "core") or not trace.complete
    _check_description(trace)
    repair(open_trace(server.out))
    mended = open_trace(server.out)
    assert compared(mended, server.answers) == finished
    _check_description(mended)
    assert {report.state for report in verify(mended)} <= {"complete", "recoverable"}
    assert mended.manifest["run"]["workload"] == mended.raw_run["workload"]
    well = kind in ("parent", "front", "core") and all(r.state == "complete" for r in verify(mended))
    assert mended.complete == well
    cut = sum(bool(answer.tokens) and not answer.finished for answer in server.answers)
    return {"finished": finished, "cut": cut, "steps": len(mended.steps("record"))}


def _check_description(trace: Trace) -> None:
    run = trace.raw_run
    assert run["command"][:2] == ["vllm", "serve"]
    assert run["workload"]["settings"]["enforce_eager"] is True
    assert Path(run["workload"]["model"]).name == "tiny-llama"
    assert run["engine"]["versions"]["vllm"]


def main(count: int, seed: int, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
    chance = random.Random(seed)
    sums: collections.Counter[str] = collections.Counter()
    for number in range(count):
        kind = kinds[(number + seed) % len(kinds)]
        folder = Path(tempfile.mkdtemp(prefix=f"killed-{kind}-"))
        try:
            found = killed(folder, kind, chance)
        except Exception:  # the others are of interest all the same
            traceback.print_exc()
            print(f"{folder} is kept", file=sys.stderr, flush=True)
            sums.update({"failed": 1, f"failed: {kind}": 1})
            continue
        shutil.rmtree(folder)
        print(json.dumps(found), flush=True)
        sums.update({"killed": 1, found["kind"]: 1, "under load": int(found["running"] > 0)})
        sums.update({name: found[name] for name in ("finished", "cut")})
    return dict(sums)


if __name__ == "__main__":
    sums = main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or KINDS)
    print(json.dumps(sums))
    sys.exit("failed" in sums or sums["under load"] * 3 < 2 * sums["killed"])
