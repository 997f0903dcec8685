"""Who asked for what: notes, in the process that takes requests, the ids, times and ends that no worker sees.

Engines name requests by ids of their own (a random suffix, the number of a sample); the front end knows what they
stand for. V1's ``OutputProcessor`` is where every request enters (of a server, of each of several front ends, of
``LLM``) and where its end is decided, stop texts included. V0 has all of it in its engine.

Nothing of this may disturb the engine: whatever goes wrong is counted, and the request goes on.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from tracereplay.engines.variables import CONTROL, OPTIONS, RECORD_TO
from tracereplay.engines.vllm.guest.ending import is_over
from tracereplay.engines.vllm.guest.fields import SERVING, kept_fields, watch_serving
from tracereplay.engines.vllm.guest.numbering import client_names
from tracereplay.engines.vllm.guest.sampling import mark_of
from tracereplay.errors import TracereplayError
from tracereplay.recorder.ends import End, EndsTold
from tracereplay.recorder.options import Options
from tracereplay.recorder.orders import Orders
from tracereplay.trace.requests import Identity, Moment, RequestFile, bounded, record_of

__all__ = ["FRONTS", "Front", "front", "watch_front"]

_V1, _V0 = "vllm.v1.engine.output_processor", "vllm.engine.llm_engine"
FRONTS = (_V1, _V0, *SERVING)
_LATE = 3600.0  # seconds before it is noted that a request can have arrived; else it has another clock
_LATELY = 1_000  # requests that ended, which are remembered
_OLDER = 4  # files to which ends are still written
LOOK = 0.25  # seconds between two looks for orders, where traces are made while nobody asks for anything
_ANY = 1 << 62  # a step that no engine reaches
_CHILD = "_parallel_sample_"


class Ordered(Protocol):
    """Orders to a recording that runs."""

    def due(self, step: int) -> Iterator[dict[str, Any]]: ...


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
        self._file: RequestFile | None = None
        self._live: dict[str, Identity] = {}
        self._lately: deque[Identity] = deque(maxlen=_LATELY)  # ended ones, for who keeps the last steps
        self._older: deque[tuple[RequestFile, set[str]]] = deque()  # files that lack the end of some
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._looks = 0  # the process in which a thread looks
        self._looked_at = 0.0  # when the end of the recording was looked for, by the monotonic clock
        if rings is not None:
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lock = threading.RLock()  # another thread may have had it

    def _look_on(self) -> None:
        while self._orders is not None:
            time.sleep(LOOK)
            try:
                self.look()
            except Exception:  # as `_after`
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
            if is_over():
                with self._lock:
                    self._directory = self._file = None
                    self._older.clear()
        if self._orders is None:
            return
        with self._lock:
            for order in self._orders.due(_ANY):
                match order:
                    case {"do": "cut", "trace": str(trace)}:
                        self.move(Path(trace))
                    case {"do": "dump", "trace": str(trace)}:
                        self.copy_to(Path(trace))

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
        try:
            file = RequestFile(directory, {"process": os.getpid()}, self._recipients)
            self._keep(file, set(self._live))
            for identity in (*self._lately, *self._live.values()):
                file.add(record_of(identity))
        except (OSError, TracereplayError):
            self.failures += 1

    def begun(self, identity: Identity) -> None:
        """A request was taken."""
        with self._lock:
            self.look()
            if identity.id not in self._live:  # one that streams its prompt is taken several times
                self._live[identity.id] = identity
                self._write(identity)
            if self._rings is not None and self._looks != os.getpid():
                self._looks = os.getpid()
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
            self._directory = self._orders = None
            files = [file for file, _ in self._older] + ([self._file] if self._file is not None else [])
            self._file = None
            self._older.clear()
        for file in files:
            file.close()

    def all_ended(self, ids: Iterable[str], reason: str) -> None:
        """See `ended`."""
        for engine_id in list(ids):
            self.ended(engine_id, reason)

    def _keep(self, file: RequestFile, ids: set[str]) -> None:
        self._older.append((file, ids))
        if len(self._older) > _OLDER:
            self._older.popleft()[0].close()

    def _write(self, identity: Identity) -> None:
        if self._pid != os.getpid():  # a fork has files of its own
            self._pid, self._file = os.getpid(), None
            self._older.clear()
        try:
            if self._file is None and self._directory is not None:
                self._file = RequestFile(self._directory, {"process": self._pid}, self._recipients)
        except (OSError, TracereplayError):
            self.failures += 1
        if self._file is not None:
            self._add(self._file, identity)

    def _add(self, file: RequestFile, identity: Identity) -> None:
        try:
            file.add({**record_of(identity), **({"lost": self.failures} if self.failures else {})})
        except OSError:
            self.failures += 1


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


def watch_front(module: ModuleType) -> None:
    """Notes the requests that this process takes from now on.

    Args:
        module: one of `FRONTS`.
    """
    if getattr(module, "_tracereplay", False):
        return
    if module.__name__ == _V1 and hasattr(module, "OutputProcessor"):
        _watch_v1(module)
    elif module.__name__ == _V0 and hasattr(module, "LLMEngine"):
        _watch_v0(module)
    elif module.__name__ in SERVING:
        watch_serving(module)
    else:
        return
    module._tracereplay = True  # type: ignore[attr-defined]


def _after(kind: Any, name: str, note: Callable[..., None]) -> None:
    """Calls ``note(self, result, *arguments)`` after each call of a method, which it never disturbs."""
    original = getattr(kind, name, None)
    if original is None:
        return

    @functools.wraps(original)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        try:
            note(self, result, *args, **kwargs)
        except Exception:
            with contextlib.suppress(Exception):  # not even there being nobody to count
                front().failures += 1
        return result

    setattr(kind, name, called)


# -- V1 -----------------------------------------------------------------------------------------------------


def _watch_v1(module: ModuleType) -> None:
    _after(module.OutputProcessor, "add_request", _taken)
    _after(module.OutputProcessor, "process_outputs", _looked)
    _after(module.RequestState, "_new_completion_output", _given)
    _after(module.OutputProcessor, "abort_requests", _aborted)
    _after(module.OutputProcessor, "propagate_error", _failed)
    _after(module.OutputProcessor, "_finish_request", _finished)


def _taken(
    self: Any, result: Any, request: Any, prompt: Any = None, parent_req: Any = None, request_index: int = 0,
    *args: Any, **kwargs: Any,
) -> None:  # fmt: skip
    sampling = request.sampling_params
    if sampling is None or not front().takes(request.request_id, sampling):  # None: it asks for no tokens
        return
    named = getattr(request, "external_req_id", None)
    name = named or (request.request_id if parent_req is None else parent_req.request_id)
    ids = request.prompt_token_ids
    front().begun(
        Identity(
            bounded(request.request_id), bounded(str(name)), arrived(request.arrival_time),
            sample=int(request_index), adapter=_adapter(request.lora_request),
            priority=int(getattr(request, "priority", 0) or 0), prompt=None if ids is None else len(ids),
            fields=kept_fields(),
        )
    )  # fmt: skip


def _given(self: Any, result: Any, *args: Any, **kwargs: Any) -> None:
    if result.finish_reason is not None:
        tokens = self.detokenizer.num_output_tokens() if hasattr(self.detokenizer, "num_output_tokens") else None
        front().ended(self.request_id, str(result.finish_reason), result.stop_reason, tokens)


def _finished(self: Any, result: Any, req_state: Any, *args: Any, **kwargs: Any) -> None:
    """One that ends without another output: its prompt came in pieces, and the last one was empty."""
    front().ended(req_state.request_id, "stop")


def _looked(self: Any, result: Any, *args: Any, **kwargs: Any) -> None:
    front().look(often=True)


def _aborted(self: Any, result: Any, *args: Any, **kwargs: Any) -> None:
    front().all_ended(result, "abort")


def _failed(self: Any, result: Any, *args: Any, **kwargs: Any) -> None:
    front().all_ended(self.request_states, "error")


# -- V0 -----------------------------------------------------------------------------------------------------

_groups: dict[str, Any] = {}  # the engine's own, of requests that have not ended


def _watch_v0(module: ModuleType) -> None:
    _after(module.LLMEngine, "_add_processed_request", _taken_v0)
    _after(module.LLMEngine, "_process_model_outputs", _given_v0)
    _after(module.LLMEngine, "abort_request", _aborted_v0)


def _taken_v0(
    self: Any, result: Any, request_id: str, *args: Any, arrival_time: float = 0.0, lora_request: Any = None,
    priority: int = 0, **kwargs: Any,
) -> None:  # fmt: skip
    if result is None:  # of several samples, each of which comes by itself
        return
    name, _, sample = request_id.rpartition(_CHILD) if _CHILD in request_id else (request_id, "", "0")
    sampling = result.sampling_params
    if sampling is None or not front().takes(request_id, sampling):
        return
    _groups[request_id] = result
    front().begun(
        Identity(
            bounded(request_id), bounded(name), arrived(arrival_time), sample=int(sample),
            adapter=_adapter(lora_request), priority=int(priority or 0), prompt=len(result.prompt_token_ids or ()),
        )
    )  # fmt: skip


def _given_v0(self: Any, result: Any, *args: Any, **kwargs: Any) -> None:
    from vllm.sequence import SequenceStatus

    for request_id, group in list(_groups.items()):
        if group.is_finished():
            del _groups[request_id]
            sequence = group.seqs[0]
            reason = SequenceStatus.get_finished_reason(sequence.status) or "error"
            front().ended(request_id, str(reason), sequence.stop_reason, sequence.get_output_len())


def _aborted_v0(self: Any, result: Any, request_id: Any, *args: Any, **kwargs: Any) -> None:
    for name in [request_id] if isinstance(request_id, str) else list(request_id):
        for known in [known for known in _groups if known.rpartition(_CHILD)[0] == name or known == name]:
            group = _groups.pop(known)
            front().ended(known, "abort", None, group.seqs[0].get_output_len())


# -- both ---------------------------------------------------------------------------------------------------


def arrived(wall: float | None) -> Moment:
    """When a request arrived, as the engine noted it on the wall's clock, and the same on the other clock."""
    found = now()
    late = 0.0 if not wall else found.utc / 1e9 - wall
    if not 0 <= late < _LATE:
        return found
    return Moment(found.utc - int(late * 1e9), max(0, found.monotonic - int(late * 1e9)))


def _adapter(request: Any) -> str:
    return "" if request is None else bounded(str(getattr(request, "lora_name", "") or ""))
