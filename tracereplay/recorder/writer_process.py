"""The writer process: compresses and writes steps from shared memory while the engine runs.

    python -m tracereplay.recorder.writer_process IN OUT      file descriptors of the two pipes

It writes one segment after the other. When the engine has exited, it writes what was handed over and exits. It
does not import torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tracereplay.event import make_rows
from tracereplay.recorder.assembly import Assembly
from tracereplay.recorder.flight import FlightRecorder
from tracereplay.recorder.live import LiveRequests, Moved
from tracereplay.recorder.options import Options
from tracereplay.recorder.protocol import Inbox, StepMessage, send
from tracereplay.recorder.triggers import Ended, Fired
from tracereplay.trace import BudgetSpent, SegmentWriter, records
from tracereplay.trace.withheld import Withheld

__all__ = ["main"]

BEGINS = (
    "This trace begins while requests run: this step has no calls, and holds these requests and the tokens that "
    "they had been given before."
)


LOOK = 1.0  # seconds between two looks at traces whose steps may not come


class _Server:
    """Writes segments, or keeps steps in a ring."""

    def __init__(self, out: int) -> None:
        self._out = out
        self._writer: SegmentWriter | None = None
        self._assembly: Assembly | None = None  # None exactly when the writer is
        self._flight: FlightRecorder | None = None  # then there is no writer
        self._fds: list[int] = []
        self._maps: dict[int, mmap.mmap] = {}
        self._held: list[int] = []  # arenas of the step in progress
        self._steps = 0
        self._given_up = False  # after a failure, or when the budget is spent
        self._failed = False
        self._live: LiveRequests | None = None  # where a cut may come
        self._sites_said: list[Any] = []
        self._make: Callable[[Path, Mapping[str, Any]], SegmentWriter] = (
            SegmentWriter  # each segment in the same way
        )
        self._closing: list[threading.Thread] = []  # of segments that were ended

    def serve(self, inbox: Inbox) -> None:
        """Handles messages until the engine has exited."""
        while (message := self._next(inbox)) is not None:
            try:
                getattr(self, f"_{message[0]}")(*message[1:])
            except BudgetSpent:
                self._given_up = True
                self._tell("spent")
            except Exception as error:
                self._given_up = self._failed = True
                self._tell("failed", _words(error))
            if message[0] == "close":
                self._tell("closed")  # the last message of a segment, even if closing failed
        if self._flight is not None:
            self._flight.gone()
        if self._writer is not None:
            self._writer.rollback()
            try:
                self._writer.abandon() if self._failed else self._writer.close_alone()
            except OSError as error:
                sys.stderr.write(f"{_words(error)}\n")

    def _next(self, inbox: Inbox) -> list[Any] | None:
        """The next message; None: the engine has exited. What arrives comes before what is to be written of a
        ring, so that the engine does not wait for that."""
        while self._flight is not None and (self._flight.unfinished or self._flight.ordered):
            self._flight.hear(idle=False)
            self._flight.obey()
            if inbox.ready(0 if self._flight.waits else LOOK, self._flight.hears):
                break
            self._flight.work()
        return inbox.next()

    def _tell(self, *message: Any) -> None:
        with contextlib.suppress(OSError):  # the engine has exited; still write what was handed over
            send(self._out, list(message))

    def _open(
        self, path: str, meta: Mapping[str, Any], codec_id: int, max_bytes: int | None, fds: list[int],
        recipients: Sequence[str] = (), withhold: str | None = None, live: bool = False,
    ) -> None:  # fmt: skip
        self._begin(fds)
        withheld = None if withhold is None else Withheld(withhold)
        self._make = partial(
            SegmentWriter, codec=codec_id, max_bytes=max_bytes, workers=_spare_cores(), recipients=recipients,
            withheld=withheld,
        )  # fmt: skip
        self._live = LiveRequests() if live else None
        self._create(path, meta)

    def _create(self, path: str, meta: Mapping[str, Any]) -> None:
        self._steps, self._given_up, self._failed = 0, False, False
        self._writer = self._make(Path(path), meta)
        self._assembly = Assembly(self._writer)
        # A held lock shows others that the segment is still being written.
        fcntl.flock(self._writer.fileno(), fcntl.LOCK_EX)
        self._tell("wrote", 0, self._writer.size)

    def _ring(
        self, path: str, meta: Mapping[str, Any], options: Mapping[str, Any], fds: list[int], room: str | None
    ) -> None:
        self._begin(fds)
        self._flight = FlightRecorder(
            Path(path),
            meta,
            Options.from_dict(options),
            _spare_cores(),
            self._tell,
            Path(room) if room else None,
        )
        self._tell("wrote", 0, 1)

    def _begin(self, fds: list[int]) -> None:
        self._fds = fds
        self._steps, self._given_up, self._failed = 0, False, False
        self._flight, self._live = None, None
        self._sites_said = []

    def _sites(self, sites: list[Any]) -> None:
        self._sites_said += sites
        if self._flight is not None:
            self._flight.sites(sites)
        else:
            assert self._writer is not None
            self._writer.sites(map(records.read_site, sites))

    def _cut(
        self, summary: Mapping[str, Any], whole: bool, path: str, meta: Mapping[str, Any], moved: Moved,
        number: int,
    ) -> None:  # fmt: skip
        before, self._writer, self._assembly = self._writer, None, None
        self._tell("cut", 0 if before is None else before.size)
        if before is not None:
            self._end_beside(before, summary, whole and not self._failed)
        self._failed, self._given_up = True, True  # until there is another
        live = self._live.moved(moved) if self._live is not None else LiveRequests()
        self._live = live
        self._create(path, meta)
        sites, self._sites_said = self._sites_said, []
        self._sites(sites)
        if len(live) and self._writer is not None:
            requests, sampled = live.beginning()
            self._writer.commit(max(number - 1, 0), make_rows([]), [], sampled, [BEGINS], requests)

    def _end_beside(self, writer: SegmentWriter, summary: Mapping[str, Any], whole: bool) -> None:
        """Ends a segment; another thread waits for the disk, which may take seconds.

        A segment that cannot be ended has no end mark, and says so to its readers.
        """
        self._closing = [thread for thread in self._closing if thread.is_alive()]
        try:
            if whole:
                writer.end(summary)
        except OSError:
            whole = False
        if whole:
            self._closing.append(threading.Thread(target=_settle, args=(writer,)))
            self._closing[-1].start()
        else:
            with contextlib.suppress(OSError):
                writer.abandon()

    def _tensors(self, arena: int, size: int, tensors: list[Any], asides: list[tuple[int, int]]) -> None:
        self._held.append(arena)
        if self._given_up:
            return
        if self._flight is not None:
            self._flight.tensors(self._memory(arena, size), tensors, asides)
        if self._assembly is not None:
            self._assembly.tensors(self._memory(arena, size), tensors, asides)

    def _memory(self, arena: int, size: int) -> memoryview:
        mapped = self._maps.get(arena)
        if mapped is None or len(mapped) != size:
            mapped = self._maps[arena] = mmap.mmap(self._fds[arena], size)
        return memoryview(mapped)

    def _release(self) -> None:
        held, self._held = self._held, []
        try:
            if self._writer is not None:
                self._writer.moved()
        finally:
            for arena in held:
                self._tell("free", arena)

    def _step(self, *fields: Any) -> None:
        try:
            if self._given_up:
                pass
            elif self._flight is not None:
                self._release()  # the ring has a copy
                self._flight.step(fields)
                self._steps += 1
            elif self._assembly is not None:
                self._assembly.commit(StepMessage(*fields), live=self._live)
                self._steps += 1
        finally:
            self._clear()
        kept = self._flight.ring if self._flight is not None else self._writer
        self._tell("wrote", self._steps, 0 if kept is None else kept.size)

    def _clear(self) -> None:
        if self._assembly is not None:
            self._assembly.clear()
        self._release()

    def _discard(self) -> None:
        if self._flight is not None:
            self._flight.discard()
        if self._writer is not None:
            self._writer.rollback()
        self._clear()

    def _ended(self, ends: list[Any]) -> None:
        if self._flight is not None:
            self._flight.ended([Ended(*end) for end in ends])

    def _fired(self, *fields: Any) -> None:
        if self._flight is not None:
            self._flight.fired(Fired(*fields))

    def _dump(self, trace: str, trigger: Mapping[str, Any], after: int) -> None:
        if self._flight is not None:
            self._flight.dump(Path(trace), trigger, after)

    def _close(self, summary: Mapping[str, Any], whole: bool) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.close()
        for thread in self._closing:
            thread.join()
        writer, self._writer, self._assembly = self._writer, None, None
        if writer is not None:
            _close_segment(writer, summary, whole and not self._failed)


def _settle(writer: SegmentWriter) -> None:
    try:
        writer.settle()
    except OSError:
        with contextlib.suppress(OSError):
            writer.abandon()


def _close_segment(writer: SegmentWriter, summary: Mapping[str, Any], whole: bool) -> None:
    try:
        writer.close(summary) if whole else writer.abandon()
    except OSError:
        with contextlib.suppress(OSError):
            writer.abandon()
        raise


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)} (while writing the trace)"
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


def _spare_cores() -> int:
    """How many threads compress. Most machines with an accelerator have spare cores, and a single one would be too
    slow for the engine; on a small machine threads would compete with the engine."""
    return max(0, min(6, (os.cpu_count() or 1) // 2 - 1))


def main() -> None:
    """Serves one engine."""
    # Engines pin their workers to cores, which children inherit; the writer would compete with its engine.
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    inbox, out = Inbox(int(sys.argv[1])), int(sys.argv[2])
    send(out, ["here", os.getpid()])
    _Server(out).serve(inbox)


if __name__ == "__main__":
    main()
