"""A command's recording while it runs, as its parent controls it: orders to the workers, traces, budgets, status.

    CLI, workers ──control.sock──▶ Recording ──orders──▶ workers      (`recorder.orders`, in the room)
                                       ▲   └─ traces: next, finish, remove (`collection`)
                                       └────pages──── workers         (`recorder.status`)

Everything here happens in threads of its own, so that a disk that hangs does not keep the parent from its signals.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tracereplay.errors import NothingRuns, TracereplayError, UsageError
from tracereplay.launch.budget import Budget
from tracereplay.launch.collection import Traces
from tracereplay.launch.control import ControlSocket
from tracereplay.launch.room import Room
from tracereplay.launch.shown import shown
from tracereplay.recorder.flight import GONE
from tracereplay.recorder.options import Options
from tracereplay.recorder.orders import give
from tracereplay.recorder.status import ENDED, PAUSED, RECORDING, Status, read_status
from tracereplay.recorder.triggers import ERROR, STARTER_GONE

__all__ = ["Recording"]

EVERY = 0.5  # seconds between two looks
AHEAD = 0.25  # seconds by which an order is ahead of engines of several ranks, which must obey at the same step
AGAIN = 10.0  # seconds until a recording that ended is begun again
TRIGGERS_EVERY = 60.0  # seconds between two triggers of one kind
SPARE = 64 << 20  # bytes that must be free before a recording that ended for want of room begins again


class Recording:
    """See the module.

    Args:
        traces: that are made.
        room: shared with the workers.
        options: at the beginning.
        budget: of a collection.
        command: what is recorded, without secrets.
        control: whether it has a socket.

    Raises:
        UsageError: the socket cannot be made.
    """

    def __init__(
        self, traces: Traces, room: Room, options: Options, budget: Budget, command: Sequence[str], *,
        control: bool = True, paused: bool = False,
    ) -> None:  # fmt: skip
        self.traces, self.room, self.budget = traces, room, budget
        self.options = options
        self.command = list(command)
        self.paused = paused
        self.began = time.time()
        self.triggers: list[dict[str, Any]] = []
        self._made: dict[str, int] = {}  # traces that triggers of a kind have made
        self.held_back = 0  # triggers that came too soon after another of their kind
        self.trouble: str | None = None  # what could not be done here
        self.told_to_end: Callable[[], bool] = lambda: False  # whether the command was
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._signalled = threading.Event()
        self._began_trace = time.monotonic()
        self._began_at = 0  # steps of all engines when the trace began
        self._again = 0.0
        self._rates: dict[str, tuple[float, int]] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.socket = ControlSocket(traces.path, self.answer) if control else None
        if paused:
            give(room.path, {"do": "pause"})

    def start(self) -> None:
        """Begins looking and answering."""
        if self.socket is not None:
            self.socket.serve()
        self._thread.start()

    def stop(self) -> None:
        """The command has ended: no more orders."""
        with self._lock:  # what is asked now is not made any more
            self._stopped.set()
        self._signalled.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.socket is not None:
            self.socket.close()

    def signalled(self) -> None:
        """SIGUSR2 came; safe in a signal's handler."""
        self._signalled.set()

    # -- orders -----------------------------------------------------------------------------------------

    def answer(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Carries out what was asked for through the socket (`control.Handler`)."""
        with self._lock:
            if self._stopped.is_set():
                raise NothingRuns("The command has ended, and its recording with it.")
            match message.get("do"):
                case "status":
                    return self.status()
                case "start":
                    return self._start()
                case "stop":
                    return self._stop()
                case "set":
                    return self._set(message.get("options"))
                case "trigger":
                    return self.trigger("asked", detail=str(message.get("why", ""))[:1000])
                case "triggered":
                    said = {name: value for name, value in message.items() if name not in ("do", "after")}
                    return self.trigger(str(said.pop("kind", ""))[:100], after=message.get("after"), **_text(said))
                case other:
                    raise UsageError(f"A recording does not know what {other!r:.60} is; is it another version's?")

    def _start(self) -> Mapping[str, Any]:
        ended = [s for s in self.ranks() if s.counters.state == ENDED]
        if ended and (not self.traces.collection or self.traces.ring):
            why = ended[0].words.get("error") or ended[0].words.get("ended")
            raise UsageError(
                f"The recording has ended ({why}), and a single trace cannot be continued; record into a "
                "collection (--rotate) to begin another."
            )
        if ended:
            self.cut(["Begun by start, after the recording had ended."])
        changed = self.resume() or bool(ended)
        return {"changed": changed, "state": "recording", "took_effect": self._wait(RECORDING)}

    def _stop(self) -> Mapping[str, Any]:
        return {"changed": self.pause(), "state": "paused", "took_effect": self._wait(PAUSED)}

    def pause(self) -> bool:
        """Records no step that begins from now on; returns whether any was before."""
        return self._rest(True)

    def resume(self) -> bool:
        """Records again; returns whether it was paused."""
        return self._rest(False)

    def _rest(self, paused: bool) -> bool:
        with self._lock:
            if self.paused == paused:
                return False
            self.paused = paused
            self._order({"do": "pause" if paused else "resume"})
            return True

    def _set(self, options: Any) -> Mapping[str, Any]:
        if not isinstance(options, dict) or not options:
            raise UsageError("No option was given that should be changed.")
        self.options = self.traces.options = self.options.changed(options)
        self._order({"do": "options", "options": options})
        return {"options": self.options.public()}

    def trigger(self, kind: str, after: Any = None, **more: Any) -> Mapping[str, Any]:
        """Something happened of which a trace shall be kept.

        Args:
            kind: ``asked`` (by a person, who is told what does not work), ``signal``, or what a worker saw.
            after: steps that follow and belong to it; None: as the options say.
            more: ``detail`` in words, ``request`` as its client knows it, and whatever else the worker says.
        """
        with self._lock:
            now = time.time()
            last = max((t["at"] for t in self.triggers if t["kind"] == kind), default=0.0)
            every = self.options.trigger_every if self.traces.ring else TRIGGERS_EVERY
            if _vanished(kind, more) and self.told_to_end():  # a front end may kill its engines then
                return {"trace": None, "held_back": True}
            most = self.options.trigger_most if self.traces.ring else len(self.triggers) + 1
            if kind != "asked" and (now - last < every or self._made.get(kind, 0) >= most):
                self.held_back += 1
                return {"trace": None, "held_back": True}
            said = {"kind": kind, "request": None, "detail": "", **more, "at": now}
            trace = self._kept(said, after)
            self._made[kind] = self._made.get(kind, 0) + 1
            self.triggers = [*self.triggers[-99:], {**said, "trace": None if trace is None else trace.name}]
            return {"trace": None if trace is None else str(trace), "held_back": False}

    def _kept(self, trigger: Mapping[str, Any], after: Any) -> Path | None:
        """The trace that a trigger begins."""
        words = f"Begun by a trigger ({trigger['kind']}): {trigger['detail']}."
        if self.traces.ring:
            trace = self.traces.beside([words])
            said = {name: value for name, value in trigger.items() if name != "at" and value is not None}
            steps = after if type(after) is int else self.options.trigger_after
            self._order({"do": "dump", "trace": str(trace), "trigger": said, "after": steps})
            return trace
        if self.traces.collection:
            return self.cut([words])
        if trigger["kind"] == "asked":
            raise UsageError(
                "A trigger needs a flight recorder (record --ring) or a collection in which it begins a trace "
                "(record --rotate); this recording has neither."
            )
        return None

    def cut(self, notes: Sequence[str] = ()) -> Path:
        """Begins the next trace; the engine's next step is its first.

        Raises:
            TracereplayError: it cannot be created.
        """
        trace = self.traces.next(notes)
        self._order({"do": "cut", "trace": str(trace)})
        self._began_trace = time.monotonic()
        self._began_at = sum(s.counters.steps for s in self.ranks())
        return trace

    def _order(self, order: Mapping[str, Any]) -> None:
        """Gives an order; engines of several ranks obey it at the same step."""
        ahead = {}
        engines: dict[str, list[Status]] = {}
        for status in self.ranks():
            engines.setdefault(status.engine, []).append(status)
        for name, ranks in engines.items():
            if len(ranks) > 1:
                steps = max(s.counters.steps for s in ranks)
                ahead[name] = steps + 4 + int(AHEAD * self._rate(name, steps))
        try:
            give(self.room.path, {**order, "at": ahead} if ahead else order)
        except OSError as error:
            raise NothingRuns(f"The engine cannot be told: {error.strerror}.") from error

    def _rate(self, engine: str, steps: int) -> float:
        """Steps a second, lately."""
        moment, before = self._rates.get(engine, (0.0, 0))
        seconds = time.monotonic() - moment
        return max(0, steps - before) / seconds if seconds > 0 else 0.0

    def _wait(self, state: int, seconds: float = 1.0) -> bool:
        """Whether all ranks are in a state, within so many seconds: an idle engine obeys with its next step."""
        until = time.monotonic() + seconds
        while not (ranks := self.ranks()) or any(s.counters.state != state for s in ranks):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    # -- looking ----------------------------------------------------------------------------------------

    def ranks(self) -> list[Status]:
        """What the workers say that run; if none does, those that have run."""
        found = read_status(self.room.path)
        return [status for status in found if status.alive()] or found

    def status(self) -> dict[str, Any]:
        """How it goes, as plain data."""
        return shown(self, self.ranks())

    def free(self) -> int | None:
        """Free bytes of the disk; None: unknown."""
        try:
            return shutil.disk_usage(self.traces.path).free
        except OSError:
            return None

    def _run(self) -> None:
        while not self._stopped.is_set():
            if self._signalled.wait(EVERY) and not self._stopped.is_set():
                self._signalled.clear()
                with contextlib.suppress(TracereplayError):
                    self.trigger("signal", detail="SIGUSR2")
            try:
                self._look()
            except (TracereplayError, OSError) as error:
                self.trouble = str(error)

    def _look(self) -> None:
        ranks = self.ranks()
        now = time.monotonic()
        for status in ranks:
            moment, _ = self._rates.get(status.engine, (0.0, 0))
            if now - moment > 1:
                self._rates[status.engine] = now, status.counters.steps
        free = self.free() if self.budget.leave_free is not None or self._ended(ranks) else None
        if self.traces.collection and not self.traces.ring:
            with self._lock:
                if self._ended(ranks):
                    self._begin_again(ranks, free)
                elif self._full(ranks):
                    self.cut()
        # Reading a trace to the end takes a while, in which the socket must be answered.
        self.traces.look([Path(str(s.words.get("trace"))) for s in ranks if s.alive()])
        self.traces.tidy(self.budget, free)

    def _full(self, ranks: Sequence[Status]) -> bool:
        """Whether the trace has the size or the age at which the next one begins."""
        in_it = [s for s in ranks if s.words.get("trace") == str(self.traces.current)]
        if not in_it:
            return False  # an order to begin it is on its way
        if self.budget.bytes is not None and sum(s.counters.trace_bytes for s in in_it) >= self.budget.bytes:
            return True
        old = self.budget.seconds is not None and time.monotonic() - self._began_trace >= self.budget.seconds
        return old and sum(s.counters.trace_steps for s in in_it) > 0

    @staticmethod
    def _ended(ranks: Sequence[Status]) -> bool:
        return any(status.counters.state == ENDED for status in ranks)

    def _begin_again(self, ranks: Sequence[Status], free: int | None) -> None:
        """Begins another trace after a failure: when there is room, if asked to; after a writer's death always."""
        ended = {str(s.words.get("ended")) for s in ranks if s.counters.state == ENDED}
        lost = ended == {"the writer process ended"}
        enough = max(self.budget.leave_free or 0, min(SPARE, 2 * (self.budget.bytes or SPARE)))
        room = free is not None and free >= enough
        failed = "failed" in ended and self.budget.resume and room
        if (lost or failed) and time.monotonic() > self._again:
            self._again = time.monotonic() + AGAIN
            self.cut([f"Begun after a failure: {self._error(ranks)}."])

    @staticmethod
    def _error(ranks: Sequence[Status]) -> str:
        errors = (status.words.get("error") for status in ranks)
        return str(next(filter(None, errors), "the recording had ended"))

    def since(self) -> str:
        """When it began, in UTC."""
        return datetime.fromtimestamp(self.began, timezone.utc).isoformat(timespec="seconds")


def _text(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker says of a trigger, as far as it is plain; texts are cut."""
    plain = {
        name: value for name, value in said.items() if isinstance(value, (str, int, float, list, dict, type(None)))
    }
    return {name: value[:1000] if isinstance(value, str) else value for name, value in plain.items()}


def _vanished(kind: str, said: Mapping[str, Any]) -> bool:
    """Whether a trigger is that an engine's process was not there any more."""
    return kind == GONE or (kind == ERROR and said.get("detail") == STARTER_GONE)
