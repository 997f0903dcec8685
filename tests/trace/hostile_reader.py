"""Opens traces as a user would, one after the other, each in a child of one warm process.

    python hostile_reader.py PATH...      prints a line of JSON for each

Each child does everything that reads a trace, and says of every stage what was raised, what processor time it took
and what the command line ended with. Memory is the growth of the child's peak; its address space is limited as a
backstop.
"""

from __future__ import annotations

import gc
import io
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tracereplay.cli.main import main
from tracereplay.errors import TraceError
from tracereplay.event import Call, Value
from tracereplay.trace import SegmentReader, Trace, open_trace
from tracereplay.trace.arrays import restore
from tracereplay.trace.into_pack import pack_trace
from tracereplay.trace.verify import verify

BACKSTOP = 1 << 30  # bytes of address space that a child may have more than its parent
PATIENCE = 20  # seconds of processor time


def segments(trace: Trace) -> Iterator[SegmentReader]:
    for key in trace.parts:
        yield trace.segment(*key)


def calls(trace: Trace) -> Iterator[Call]:
    for segment in segments(trace):
        for step in segment.steps():
            yield from step.calls


def values(call: Call) -> list[Value]:
    return [*call.inputs, *call.outputs, *call.written.values()]


def kernels(path: Path) -> None:
    for segment in segments(open_trace(path)):
        for step in segment.steps():
            for kernel in step.kernels:
                assert kernel.name is not None


def digest(path: Path) -> None:
    trace = open_trace(path)
    assert len(trace.digest()) == 32
    assert trace.complete in (True, False)


def every_value(path: Path) -> None:
    trace = open_trace(path)
    for call in calls(trace):
        for value in values(call):
            value.numpy()


def every_array(path: Path) -> None:
    trace = open_trace(path)
    for call in calls(trace):
        restore(call.inputs)
        restore(call.outputs)


def every_record(path: Path) -> None:
    trace = open_trace(path)
    for segment in segments(trace):
        for record in segment.records():
            record.rows.sum()
            for located in record.form.values:
                if located.chunk >= 0:
                    segment.load(located._replace(chunk=record.chunk + located.chunk))


def verified(path: Path) -> list[str]:
    return [report.state for report in verify(open_trace(path))]


def packed(path: Path) -> None:
    """Copies it, and stores it otherwise, also as its difference from itself.

    Nobody waits for the copy of a terabyte.
    """
    if open_trace(path).size > 1 << 30:
        return
    with tempfile.TemporaryDirectory() as folder:
        pack_trace(open_trace(path), Path(folder) / "a.trace")
        pack_trace(open_trace(path), Path(folder) / "b.trace", level=1)
        if open_trace(path).run.base is None:
            pack_trace(open_trace(path), Path(folder) / "c.trace", level=1, base=open_trace(path))


def asked(path: Path) -> None:
    for known in open_trace(path).requests:
        assert isinstance(known.identity.client_id, str)


STAGES: dict[str, Callable[[Path], Any]] = {
    "open": lambda path: open_trace(path).close(),
    "digest": digest,
    "records": every_record,
    "values": every_value,
    "restore": every_array,
    "kernels": kernels,
    "requests": asked,
    "verify": verified,
    "pack": packed,
}
VERBS = {
    "show": ["show", "TRACE"],
    "show request": ["show", "TRACE", "--request", "0"],
    "show requests as json": ["show", "TRACE", "--all", "--json", "-"],
    "show site": ["show", "TRACE", "*"],
    "show kernels": ["show", "TRACE", "*", "--kernels"],
    "compare": ["compare", "TRACE", "TRACE"],
    "verify": ["verify", "TRACE"],
    "verify json": ["verify", "TRACE", "--json"],
}


def stage(run: Callable[[Path], Any], path: Path) -> dict[str, Any]:
    """What came of one stage."""
    begun = time.process_time()
    try:
        result, raised, text = run(path), None, ""
    except TraceError as error:
        result, raised, text = None, type(error).__name__, str(error)
    except BaseException:
        result, raised, text = None, "LEAK", traceback.format_exc()
    return {"result": result, "raised": raised, "text": text, "seconds": time.process_time() - begun}


def verb(words: list[str], path: Path) -> dict[str, Any]:
    """How the program ended, and what it said."""
    out, err = io.StringIO(), io.StringIO()
    begun = time.process_time()
    code: Any = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(path) if word == "TRACE" else word for word in words])
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            code = traceback.format_exc()
    seconds = time.process_time() - begun
    return {"code": code or 0, "out": out.getvalue(), "err": err.getvalue(), "seconds": seconds}


def peak() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit() -> None:
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BACKSTOP, size + BACKSTOP))
    resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))


def all_of(path: Path) -> dict[str, Any]:
    before = peak()
    stages = {name: stage(run, path) for name, run in STAGES.items()}
    raised = [name for name in STAGES if stages[name]["raised"]]
    # A verb takes as long as all stages together, so only those that see more than the others do.
    chosen = ["show"] if "open" in raised else ["compare"] if raised else list(VERBS)
    verbs = {name: verb(VERBS[name], path) for name in chosen}
    return {"path": str(path), "stages": stages, "verbs": verbs, "grown": peak() - before}


def in_child(path: Path) -> str:
    """One path's line, made in a fork of this process."""
    theirs, ours = os.pipe()
    child = os.fork()
    if child == 0:
        limit()
        os.close(theirs)
        with os.fdopen(ours, "w") as file:
            file.write(json.dumps(all_of(path)))
        os._exit(0)
    os.close(ours)
    with os.fdopen(theirs) as file:
        line = file.read()
    _, status = os.waitpid(child, 0)
    return line if status == 0 else json.dumps({"path": str(path), "died": status})


if __name__ == "__main__":
    all_of(Path(sys.argv[1]))  # imports on use, caches and pools are filled once, by an honest trace
    gc.freeze()  # else each child's first collection would copy all of the parent's memory
    for argument in sys.argv[2:]:
        print(in_child(Path(argument)), flush=True)
