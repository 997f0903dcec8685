"""What a process that takes requests has noted of them: ids, times and ends, in the trace's files of requests.

    begun, ended ─▶ file of the trace (`recorder.request_notes`), or of the next one, or of one that a ring makes
                └─▶ rings, which wait for ends (`recorder.ends`)

Where an engine says it is in `identity`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from tracereplay.engines.variables import CONTROL, ENDED, OPTIONS, RECORD_TO
from tracereplay.engines.vllm.guest.ending import is_over
from tracereplay.engines.vllm.guest.numbering import client_names
from tracereplay.engines.vllm.guest.sampling import mark_of
from tracereplay.recorder.aside import Aside
from tracereplay.recorder.ends import End, EndsTold
from tracereplay.recorder.options import Options
from tracereplay.recorder.orders import Orders
from tracereplay.recorder.request_notes import RequestNotes
from tracereplay.trace.requests import Identity, Moment, bounded, record_of

__all__ = ["Front", "arrived", "front", "now"]

_LATE = 3600.0  # seconds before it is noted that a request can have arrived; else it has another clock
_LATELY = 1_000  # requests that ended, which are remembered
_OLDER = 4  # files to which ends are still written
_LAST = 1.0  # seconds after a request's end in which this process does not exit: the end may set off a ring
LOOK = 0.25  # seconds between two looks for orders, where traces are made while nobody asks for anything
_ANY = 1 << 62  # a step that no engine reaches


class Ordered(Protocol):
    """Orders to a recording that runs."""

    def due(self, step: int) -> Iterator[dict[str, Any]]: ...
    def close(self) -> None: ...


class Front:
    """What this process has noted of its requests.

    Args:
        directory: of the trace; None: nothing is written until it is ordered.
        orders: that may send it to another trace.
        takes: whether a request is recorded, by its engine's id and its sampling parameters.
        withhold: whether what a request stopped at, which is text or a token of its own, is kept out.
        recipients: the only ones who can read the files; see `RequestFile`.
        rings: are told of ends; None: there are none. Where there are, a thread looks for orders: traces are made
            while nobody asks for anything.
    """

    def __init__(
        self, directory: Path | None, orders: Ordered | None = None,
        takes: Callable[[str, Any], bool] = lambda engine_id, sampling: True, withhold: bool = False,
        recipients: Sequence[str] = (), rings: EndsTold | None = None,
    ) -> None:  # fmt: skip
        self.takes = takes
        self._rings = rings
        self._withhold, self._recipients = withhold, recipients
        self.failures = 0  # records that could not be written
        self._directory = directory
        self._orders = orders
        self._file: RequestNotes | None = None
        self._live: dict[str, Identity] = {}
        self._lately: deque[Identity] = deque(maxlen=_LATELY)  # ended ones, for who keeps the last steps
        self._older: deque[tuple[RequestNotes, set[str]]] = deque()  # files that lack the end of some
        self._aside = Aside()  # writes them: a disk that hangs must not stop who serves all clients
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._looks = 0  # the process in which a thread looks
        self._over = False
        self._looked_at = 0.0  # when the end of the recording was looked for, by the monotonic clock
        self._ended_at = -_LAST  # when a ring was told of an end last, by the monotonic clock
        if rings is not None:
            _of_forks(self)

    def forked(self) -> None:
        """This process is a fork."""
        self._lock = threading.RLock()  # another thread may have had it

    def _look_on(self) -> None:
        while self._orders is not None:
            time.sleep(LOOK)
            self._look_safely()

    def _look_at_last(self) -> None:
        """Waits for the trace that the last request's end may have set off: a script exits right behind it."""
        while time.monotonic() < self._ended_at + _LAST and self._orders is not None:
            time.sleep(LOOK / 5)
        self._look_safely()

    def _look_safely(self) -> None:
        try:
            self.look()
        except Exception:  # of what goes wrong here nothing may disturb the engine
            self.failures += 1

    def look(self, *, often: bool = False) -> None:
        """Follows what was ordered, as far as it concerns where is written; costs one system call.

        Args:
            often: whether it is called for each step. Then the end of the recording is looked for now and then
                only: that file may be on a disk that others share.
        """
        now = time.monotonic()
        if self._directory is not None and not (often and now < self._looked_at + LOOK):
            self._looked_at = now
            if self._is_over():
                with self._lock:
                    self._directory = None
                    self._shut()
        if self._orders is None:
            return
        with self._lock:
            for order in self._orders.due(_ANY):
                match order:
                    case {"do": "cut", "trace": str(trace)}:
                        self.move(Path(trace))
                    case {"do": "dump", "trace": str(trace)}:
                        self.copy_to(Path(trace))

    def _is_over(self) -> bool:
        """Whether the recording has ended, as far as is known: the file that says so may be on a disk, too."""
        if os.environ.get(ENDED) and not self._over:
            self._aside.do(self._look_for_end)
        return self._over

    def _look_for_end(self) -> None:
        self._over = self._over or is_over()

    def move(self, directory: Path) -> None:
        """Writes to another trace from now on, and there again what is known of requests that have not ended.

        The trace before gets their ends, too: an engine has been through its last step before this process knows.
        """
        if self._file is not None:
            self._keep(self._file, set(self._live))
            self._file = None
        self._directory = directory
        for identity in list(self._live.values()):
            self._write(identity)

    def copy_to(self, directory: Path) -> None:
        """Writes what is known of requests that run or ended lately into another trace, and later their ends."""
        file = self._notes(directory)
        self._keep(file, set(self._live))
        for identity in (*self._lately, *self._live.values()):
            file.add(record_of(identity))

    def begun(self, identity: Identity) -> None:
        """A request was taken."""
        with self._lock:
            self.look()
            if identity.id not in self._live:  # one that streams its prompt is taken several times
                self._live[identity.id] = identity
                self._write(identity)
            if self._rings is not None and self._looks != os.getpid():
                self._looks = os.getpid()
                atexit.register(self._look_at_last)
                threading.Thread(target=self._look_on, name="tracereplay-front", daemon=True).start()

    def ended(self, engine_id: str, reason: str, stop: Any = None, tokens: int | None = None) -> None:
        """It ended; later ends of the same are the engine's bookkeeping."""
        with self._lock:
            self.look()
            self._ended(engine_id, reason, stop, tokens)

    def _ended(self, engine_id: str, reason: str, stop: Any, tokens: int | None) -> None:
        known = self._live.pop(bounded(engine_id), None)
        if known is None:
            return
        at = None if stop is None or self._withhold else stop if type(stop) is int else bounded(str(stop))
        end = Identity(known.id, ended=now(), reason=bounded(reason), stop=at, tokens=tokens)
        self._lately.append(replace(known, ended=end.ended, reason=end.reason, stop=at, tokens=tokens))
        self._write(end)
        if self._rings is not None:
            self._ended_at = time.monotonic()
            self._rings.tell(End(end.id, end.reason, tokens))
        for file, ids in self._older:
            if end.id in ids:
                ids.discard(end.id)
                self._add(file, end)
        while self._older and not self._older[0][1]:
            self._older.popleft()[0].close()

    def close(self) -> None:
        """Notes nothing more."""
        with self._lock:
            atexit.unregister(self._look_at_last)
            if self._orders is not None:
                self._orders.close()
            if self._rings is not None:
                self._rings.close()
            self._directory = self._orders = self._rings = None
            self._shut()
            self._aside.close()
            _forking.discard(self)

    def _shut(self) -> None:
        """Writes to no file any more."""
        files = [file for file, _ in self._older] + ([self._file] if self._file is not None else [])
        self._file = None
        self._older.clear()
        for file in files:
            file.close()

    def all_ended(self, ids: Iterable[str], reason: str) -> None:
        """See `ended`."""
        for engine_id in list(ids):
            self.ended(engine_id, reason)

    def _keep(self, file: RequestNotes, ids: set[str]) -> None:
        self._older.append((file, ids))
        if len(self._older) > _OLDER:
            self._older.popleft()[0].close()

    def _write(self, identity: Identity) -> None:
        if self._pid != os.getpid():  # a fork has files of its own
            self._pid, self._file = os.getpid(), None
            self._older.clear()
        if self._file is None and self._directory is not None:
            self._file = self._notes(self._directory)
        if self._file is not None:
            self._add(self._file, identity)

    def _notes(self, directory: Path) -> RequestNotes:
        return RequestNotes(directory, {"process": os.getpid()}, self._recipients, self._aside, self._failed)

    def _failed(self) -> None:
        self.failures += 1

    def _add(self, file: RequestNotes, identity: Identity) -> None:
        file.add({**record_of(identity), **({"lost": self.failures} if self.failures else {})})


_forking: weakref.WeakSet[Front] = weakref.WeakSet()  # fronts that must know of forks


def _of_forks(one: Front) -> None:
    """Tells it of forks: a hook stays as long as the process does, so that there is one for all of them."""
    _hook_forks()
    _forking.add(one)


@functools.cache
def _hook_forks() -> None:
    os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    for one in list(_forking):
        one.forked()


@functools.cache
def front() -> Front:
    """This process's."""
    options = Options.from_dict(json.loads(os.environ.get(OPTIONS, "{}")))

    def takes(engine_id: str, sampling: Any) -> bool:
        return options.choice.takes(client_names(engine_id), mark_of(sampling))

    if RECORD_TO not in os.environ:  # of a recording that is over, while its engine lives on
        return Front(None, takes=lambda engine_id, sampling: False)
    directory = Path(os.environ[RECORD_TO]) if options.ring is None else None
    room = os.environ.get(CONTROL)
    rings = EndsTold(Path(room)) if room and options.ring is not None else None
    return Front(directory, _orders(), takes, options.withhold is not None, options.recipients, rings)


def _orders() -> Orders | None:
    """Those of the recording; None where nobody can give any (more)."""
    room = os.environ.get(CONTROL)
    try:
        return Orders(Path(room), "front") if room else None
    except OSError:
        return None


def now() -> Moment:
    """The time on both clocks."""
    return Moment(time.time_ns(), time.monotonic_ns())


def arrived(wall: float | None) -> Moment:
    """When a request arrived, as the engine noted it on the wall's clock, and the same on the other clock."""
    found = now()
    late = 0.0 if not wall else found.utc / 1e9 - wall
    if not 0 <= late < _LATE:
        return found
    return Moment(found.utc - int(late * 1e9), max(0, found.monotonic - int(late * 1e9)))
