"""The flight recorder at work: keeps steps, looks for what triggers wait for, and makes traces of it.

Where a parent listens at `control.sock` in the recording's folder, it is told of triggers, and orders traces of
all ranks. Without one, and when the engine is gone, the writer makes its own: `000001.trace` and so on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from tracereplay.errors import TraceError, UsageError
from tracereplay.passes import RECORD
from tracereplay.recorder.dump import Dump, Kind
from tracereplay.recorder.endings import Endings
from tracereplay.recorder.ends import heard_in
from tracereplay.recorder.options import Options
from tracereplay.recorder.orders import Orders
from tracereplay.recorder.parent import Parent
from tracereplay.recorder.protocol import StepMessage
from tracereplay.recorder.ring import Piece, Ring, SequenceKey
from tracereplay.recorder.triggers import ENDS, ERROR, MARK, NONFINITE, Ended, Fired, RateLimit, Triggers
from tracereplay.trace import BudgetSpent, TraceDirectory, records, segment_path
from tracereplay.trace.plain import pack
from tracereplay.trace.withheld import Withheld

__all__ = ["GONE", "RUN", "TRACE_NAME", "FlightRecorder"]

RUN = ".run.json"  # what a trace's manifest says of the run, where its parent left it
TRACE_NAME = "{:06}.trace"
GONE = "gone"  # the kind of a trigger: the engine vanished
UNTIL_END = 10_000  # steps after a mark: until the request has ended
_ANY = 1 << 62  # a step that no engine reaches


class FlightRecorder:
    """See the module.

    Args:
        path: of a segment in the recording's folder, which is never made: its name is that of the segments.
        meta: of the segments.
        options: of the recording; has a ring.
        workers: threads that compress.
        tell: sends a message to the engine.
        room: where a parent gives orders, and what it says of the run; None: there is none.
    """

    def __init__(
        self, path: Path, meta: Mapping[str, Any], options: Options, workers: int, tell: Callable[..., None],
        room: Path | None = None,
    ) -> None:  # fmt: skip
        limits = options.ring_limits()
        assert limits is not None
        self._folder, self._name = path.parent, path.name
        self._sites: list[Any] = []
        withheld = None if options.withhold is None else Withheld(options.withhold)
        self._kind = Kind(
            dict(meta), self._sites, options.codec, options.max_bytes, workers, options.recipients, withheld
        )
        self._run = _run_in(room or self._folder)
        self._orders = _orders_in(room, path.stem.rpartition("-rank")[0])
        self._endings = Endings(heard_in(room, path.stem))
        self._rank = int(meta.get("rank", 0))
        self._after = options.trigger_after
        self._tell = tell
        self.ring = Ring(limits)
        self._triggers = Triggers(options.triggers, tokens=withheld is None)
        self._limit = RateLimit(options.trigger_every, options.trigger_most)
        self._dumps: list[tuple[Dump, TraceDirectory | None]] = []
        self._pieces: list[Piece] = []  # of the step that is under way
        self._asides: list[bytes] = []
        self._parent = Parent(self._folder)
        self._broke = -1  # where the ring ended when the engine last raised an exception

    # -- steps ------------------------------------------------------------------------------------------

    def sites(self, sites: Sequence[Any]) -> None:
        """See `protocol`."""
        self._sites += sites

    def tensors(self, memory: memoryview, tensors: Sequence[Any], asides: Sequence[Sequence[int]]) -> None:
        """Keeps an arena's tensors of the step that is under way; the arena is free again."""
        ends = [d[3] + d[4] for d in tensors] + [offset + size for offset, size in asides]
        self._pieces.append(Piece(bytes(memory[: max(ends, default=0)]), pack([tensors, asides])))
        self._asides += [bytes(memory[offset : offset + size]) for offset, size in asides]

    def step(self, message: Sequence[Any]) -> None:
        """Keeps the step, of which the tensors are here."""
        try:
            kept = self.ring.add(message, self._pieces, self._asides)
            self._endings.step(kept)
            for dump, _ in self._dumps:
                dump.came()
            fired = self._nonfinite(StepMessage(*message)) or self._triggers.of_sampled(kept.number, kept.sampled)
        finally:
            self.discard()
        if fired is not None:
            self.fired(fired)
        self._make_room()

    def discard(self) -> None:
        """Forgets the step that is under way."""
        self._pieces, self._asides = [], []

    def ended(self, ends: Sequence[Ended]) -> None:
        """Sequences have come to their ends, as the worker says."""
        for end in self._endings.said(ends):
            self._judge(end)
        self._over((end.request, end.sequence) for end in ends)

    def hear(self, *, idle: bool, last: bool = False) -> None:
        """Sequences may have come to their ends, as front ends say.

        Args:
            idle, last: see `Endings.due`.
        """
        ends = self._endings.due(idle=idle, last=last)
        for end in ends:
            self._judge(end)
        self._over((end.request, end.sequence) for end in ends)

    @property
    def hears(self) -> Sequence[int]:
        """File descriptors by which front ends are heard."""
        return self._endings.fds

    def _judge(self, end: Ended) -> None:
        fired = self._triggers.of_end(end)
        if fired is not None:
            self.fired(fired)

    def _over(self, keys: Iterable[SequenceKey]) -> None:
        for key in keys:
            for dump, _ in self._dumps:
                dump.ended(key)
            self.ring.ended(key)
        self._close_done()

    def _make_room(self) -> None:
        while self.ring.overfull():
            for dump, _ in list(self._dumps):
                while dump.waits and dump.next <= self.ring.begin:
                    self._write(dump)
            self.ring.evict()
        self._close_done()

    def _nonfinite(self, step: StepMessage) -> Fired | None:
        for aside, rows in step.flags:
            whose = records.read_rows(rows)
            finite = np.frombuffer(self._asides[aside], np.bool_)[: len(whose)]
            if not finite.all():
                request, sequence, position = whose[finite.argmin()].tolist()
                words = "its logits are not finite"
                return Fired(NONFINITE, words, request, sequence, position, step.number)
        return None

    # -- triggers ---------------------------------------------------------------------------------------

    def fired(self, fired: Fired) -> None:
        """Something happened that makes a trace, unless it happens too often or nobody waits for it."""
        if fired.kind in (ERROR, MARK) and not self._triggers.has(fired.kind):
            return
        if not self._limit.lets(fired.kind):
            return
        if fired.kind == ERROR:
            self._broke = self.ring.end
        said, after = self._said(fired), self._after
        if fired.kind in (MARK, *ENDS):
            after = UNTIL_END if fired.kind == MARK else 0
        if not self._parent.tell(fired, said, after):
            self._dump_alone(fired, said, after)
        else:
            self._parent.wait()
            self.obey()

    @property
    def ordered(self) -> bool:
        """Whether orders may come."""
        return self._orders is not None

    def obey(self, *, last: bool = False) -> None:
        """Makes the traces that the parent has ordered; that needs no step, nor an engine that lives.

        Args:
            last: whether nobody obeys later.
        """
        unheard = self._parent.unheard(last)  # an order comes before the answer
        for asked in unheard:
            self._dump_alone(asked.fired, asked.said, asked.after)
        for order in () if self._orders is None else self._orders.due(_ANY):
            match order:
                case {"do": "dump", "trace": str(trace), "trigger": dict(trigger)}:
                    try:
                        self.dump(Path(trace), trigger, int(order.get("after", self._after)))
                    except (OSError, TraceError, BudgetSpent, ValueError, TypeError) as error:
                        self._tell("failed", f"no trace of the ring could be made: {_words(error)}")

    def gone(self) -> None:
        """The engine vanished: what it did last is what somebody will want to know."""
        fired = Fired(GONE, "the engine was gone without having said so")
        self.hear(idle=True, last=True)
        self.obey()
        new = self.ring.end > self.ring.begin and self.ring.end != self._broke
        if new and self._triggers.has(ERROR) and self._limit.lets(GONE):
            said = self._said(fired)
            if not self._parent.tell(fired, said, 0):
                self._dump_alone(fired, said, 0)
        self.close()

    def dump(self, trace: Path, trigger: Mapping[str, Any], after: int) -> None:
        """Makes a trace of the ring and of ``after`` steps that follow.

        Args:
            trace: its directory, which is there.
            trigger: what set it off, as `_said` says it; the numbers of requests are the engine's.
            after: see `Dump`.
        """
        known = {name: trigger[name] for name in Fired._fields if trigger.get(name) is not None}
        fired = Fired(**{"kind": "order", "detail": "", **known})
        places = range(self.ring.begin, self.ring.end) if fired.step >= 0 else ()
        after = max(0, after - sum(self.ring.at(place).number > fired.step for place in places))
        self._begin(trace / self._name, None, fired, {**self._said(fired), **trigger}, after)

    def _said(self, fired: Fired) -> dict[str, Any]:
        said = {name: value for name, value in fired._asdict().items() if value not in ("", -1)}
        suppressed, self._limit.suppressed = self._limit.suppressed, {}
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        return {**said, "time": time, "rank": self._rank, **({"suppressed": suppressed} if suppressed else {})}

    def _dump_alone(self, fired: Fired, said: Mapping[str, Any], after: int) -> None:
        directory = None
        try:
            directory = self._new_directory()
            self._begin(segment_path(directory.path, RECORD, self._rank), directory, fired, said, after)
        except (OSError, TraceError, BudgetSpent, UsageError) as error:
            if directory is not None:
                directory.let_go()
            self._tell("failed", f"no trace of the ring could be made: {_words(error)}")

    def _new_directory(self) -> TraceDirectory:
        for number in count(1):
            path = self._folder / TRACE_NAME.format(number)
            if not path.exists():
                try:
                    return TraceDirectory(path, self._run, self._kind.recipients)
                except UsageError:
                    if not path.exists():
                        raise
        raise AssertionError

    def _begin(
        self, path: Path, directory: TraceDirectory | None, fired: Fired, said: Mapping[str, Any], after: int
    ) -> None:
        self._dumps.append((Dump(path, self._kind, self.ring, fired, said, after), directory))
        self._tell("dumping", str(path.parent))

    # -- writing ----------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether there is something to write while nothing arrives."""
        return any(dump.waits for dump, _ in self._dumps)

    @property
    def unfinished(self) -> bool:
        """Whether a trace is being made."""
        return bool(self._dumps)

    def work(self) -> None:
        """Writes one step, or ends traces whose steps do not come, while nothing arrives."""
        self.hear(idle=True)
        dump = next((dump for dump, _ in self._dumps if dump.waits), None)
        if dump is not None:
            self._write(dump)
        self._close_done()

    def close(self) -> None:
        """Writes what is to be written; the ring goes with the process."""
        self.hear(idle=True, last=True)
        self.obey(last=True)
        while self._parent.owes:
            time.sleep(0.02)
            self.obey(last=True)
        self._endings.close()
        if self._orders is not None:
            self._orders.close()
            self._orders = None
        for dump, _ in list(self._dumps):
            while dump.waits and self._under_way(dump):
                self._write(dump)
            self._end(dump)

    def _under_way(self, dump: Dump) -> bool:
        return any(dump is one for one, _ in self._dumps)

    def _write(self, dump: Dump) -> None:
        try:
            dump.write()
        except BudgetSpent:
            self._end(dump, "max_bytes")
        except (OSError, TraceError, ValueError, KeyError, TypeError) as error:
            self._fail(dump, error)

    def _close_done(self) -> None:
        for dump, _ in list(self._dumps):
            if dump.done:
                self._end(dump)

    def _end(self, dump: Dump, why: str | None = None) -> None:
        if not self._under_way(dump):
            return
        try:
            dump.finish(why)
        except (OSError, BudgetSpent) as error:
            self._fail(dump, error)
            return
        self._remove(dump)
        self._tell("dumped", str(dump.path.parent), dump.size)

    def _fail(self, dump: Dump, error: Exception) -> None:
        dump.abandon()
        self._remove(dump)
        self._tell("failed", f"a trace of the ring is not whole: {_words(error)}")

    def _remove(self, dump: Dump) -> None:
        for one, directory in self._dumps:
            if one is dump and directory is not None:
                directory.let_go()
        self._dumps = [found for found in self._dumps if found[0] is not dump]


def _run_in(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RUN).read_text())
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) else {"kind": "recording", "command": [], "notes": []}


def _orders_in(room: Path | None, engine: str) -> Orders | None:
    try:
        return None if room is None else Orders(room, engine)
    except OSError:
        return None


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return f"{type(error).__name__}: {error}"
