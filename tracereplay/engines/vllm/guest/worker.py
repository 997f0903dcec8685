"""Recording and replaying inside one worker process, controlled by messages.

The driver speaks to all workers through the engine's own ``collective_rpc``; messages and answers are JSON
texts, because that crosses every engine's process boundary.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import multiprocessing
import os
import socket
import sys
import traceback
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracereplay.device import device_of
from tracereplay.engines.naming import map_of
from tracereplay.engines.request import Cancel, Inject, PassRequest
from tracereplay.engines.roles import with_roles
from tracereplay.engines.variables import CONTROL as ROOM
from tracereplay.engines.variables import NO_TAPS, OPTIONS
from tracereplay.engines.vllm.family import VLLM
from tracereplay.engines.vllm.guest.adapter import Adapter, wrap_method
from tracereplay.engines.vllm.guest.asked import asked_of_graphs
from tracereplay.engines.vllm.guest.choose import adapt, generation
from tracereplay.engines.vllm.guest.claim import claim_segment, data_parallel_rank
from tracereplay.engines.vllm.guest.describe import describe
from tracereplay.engines.vllm.guest.ending import end_when_told, recorded_to
from tracereplay.engines.vllm.guest.graphs import watch_graphs
from tracereplay.engines.vllm.guest.refusals import captures_graphs
from tracereplay.engines.vllm.guest.starter import Starter
from tracereplay.errors import TracereplayError, Unsupported
from tracereplay.event import RowKey
from tracereplay.hooks.kernels import look_into
from tracereplay.hooks.taps import listen
from tracereplay.passes import INJECTED, RECORD
from tracereplay.recorder.control import Control
from tracereplay.recorder.options import Options
from tracereplay.recorder.replacement import Replacement
from tracereplay.recorder.session import Session
from tracereplay.recorder.triggers import ERROR, STARTER_GONE
from tracereplay.replayer.golden import GoldenRows, forced_tokens, golden_tokens
from tracereplay.replayer.own_errors import CancelledRows
from tracereplay.replayer.tables import RowTables
from tracereplay.trace import SegmentWriter, Trace, open_trace, segment_path

__all__ = ["CONTROL", "GuestWorker"]

CONTROL = "tracereplay_control"
CHOOSE_ALONE = (
    "Under tensor parallelism, only the first of V0's workers knows which request a row belongs to, so that no "
    "requests can be chosen; record all of them, or use V1."
)

NOT_HERE = (
    "tracereplay: this engine is not recorded, since {} has no folder {}; put the trace on a file system that all "
    "machines with engines share, under the same path.\n"
)


class GuestWorker:
    """Attached to one engine worker.

    Args:
        worker: vLLM's worker, before its model is loaded.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._session: Session | None = None
        self._adapter: Adapter | None = None
        self._refusal = "The engine has not loaded its model."
        self._golden: tuple[Path, Trace] | None = None
        self._tables: dict[tuple[str, str], RowTables] = {}  # by trace and pass; for many passes over the same two
        self._injected: Trace | None = None  # that they are read from
        load = worker.load_model

        @functools.wraps(load)
        def load_model(*args: Any, **kwargs: Any) -> Any:
            result = load(*args, **kwargs)
            if not os.environ.get(NO_TAPS):
                self._attach()
            return result

        worker.load_model = load_model
        setattr(worker, CONTROL, self.control)

    def _attach(self) -> None:
        """Taps the model; whatever goes wrong is kept to be told, and the engine starts as usual."""
        worker = self._worker
        try:
            session = Session(worker.rank, device_of(worker.model_runner.device))
            self._adapter = adapt(worker.model_runner, session, worker.vllm_config)
            _watch_weights(self._adapter.model(), session)
            if captures_graphs(worker.vllm_config):
                watch_graphs(self._adapter, session, asked_of_graphs())
            self._session = session
            look_into("vllm")
            listen(session)
            with contextlib.suppress(OSError):  # then the first pass tries it again, and says why
                session.prepare()
            if (trace := recorded_to()) is not None:
                self._record_all(trace)
        except TracereplayError as error:
            self._refuse(str(error))
        except Exception:
            self._refuse(f"Taps could not be attached to this engine:\n{traceback.format_exc()}")

    def _refuse(self, why: str) -> None:
        """Keeps why this engine is not recorded; a command's trace says so by a segment without steps."""
        self._refusal = why
        if (trace := recorded_to()) is not None:
            with contextlib.suppress(OSError, TracereplayError):
                path = claim_segment(trace, self._worker.vllm_config, self._worker.rank, claims=_room())
                meta = {**self._meta(), "refused": why}
                SegmentWriter(path, meta, recipients=_recording_options().recipients).close_alone()

    def _record_all(self, trace: Path) -> None:
        """Records everything until the process or the recording ends: the engine belongs to the user."""
        if not trace.is_dir():
            sys.stderr.write(NOT_HERE.format(socket.gethostname(), trace))
            return
        options = _recording_options()
        request = PassRequest(trace, RECORD, options=options)
        message = {"do": "begin", "first_request": None, "request": request.as_dict()}
        answer = json.loads(self.control(json.dumps(message)))
        if "error" in answer:
            self._refuse(answer["error"])
            return
        assert self._session is not None
        end = _end_with(self._worker, self._session)
        end_when_told(self._session, self._session.segment, self._world(), lambda: atexit.unregister(end))
        shutdown = getattr(self._worker, "shutdown", None)
        if shutdown is not None:

            @functools.wraps(shutdown)
            def ending(*args: Any, **kwargs: Any) -> Any:
                end()
                return shutdown(*args, **kwargs)

            self._worker.shutdown = ending

    def control(self, message: str) -> str:
        """Carries out one message; the answer has ``error`` if it could not be."""
        request = json.loads(message)
        try:
            answer = getattr(self, f"_do_{request.pop('do')}")(**request)
        except TracereplayError as error:
            answer = {"error": str(error), "exit_code": error.exit_code}
        except Exception:
            answer = {"error": traceback.format_exc(), "exit_code": 4}
        return json.dumps(answer)

    def _do_describe(self) -> dict[str, Any]:
        if self._session is None and not os.environ.get(NO_TAPS):
            return {"refusal": self._refusal}
        found = describe(self._worker.model_runner, self._worker.vllm_config)
        return {**found, "rank": self._worker.rank, "taps": self._session is not None}

    def _do_begin(self, request: Mapping[str, Any], first_request: int | None) -> dict[str, Any]:
        """Begins a pass.

        Args:
            request: a `PassRequest` as plain data.
            first_request: see `Numbering`.
        """
        session, adapter = self._session, self._adapter
        if session is None or adapter is None:
            return {"error": self._refusal, "exit_code": 2}
        asked = PassRequest.from_dict(request)
        if asked.options.choice.chooses and self._world() > 1 and generation(self._worker.model_runner) == "V0":
            raise Unsupported(CHOOSE_ALONE)
        forced, replacement = self._given(asked)
        options, control, paused = self._share(asked.options), None, False
        meta = {"pass": asked.name, "rank": session.rank, "world": self._world(), "engine": self._do_describe()}
        if first_request is None:  # a command of the user's: only the engine knows which model it loaded
            room = _room()
            path = claim_segment(asked.trace, self._worker.vllm_config, session.rank, claims=room)
            if room is not None:
                control = Control(room, path.stem, session)
                options, trace, paused = control.catch_up(options, asked.trace)
                path = trace / path.name
            meta |= self._meta()
            # A client may have tokens that a ring is still to get; with a whole trace, it may not.
            options = options if options.ring is not None else replace(options, in_flight=0)
        else:
            path = segment_path(asked.trace, asked.name, session.rank)
        adapter.begin_pass(first_request, forced, asked.serving.order())
        session.begin_pass(path, meta, replacement, options, adapter.model(), control, paused)
        return {}

    def _given(self, request: PassRequest) -> tuple[Mapping[RowKey, int], Replacement | None]:
        """The tokens that are forced, and what operators are fed."""
        if request.golden is None:
            return {}, None
        golden = self._open(request.golden)
        tokens = golden_tokens(golden)
        forced = forced_tokens(tokens, [len(p.token_ids or ()) for p in golden.run.prompts])
        match request.feed:
            case None:
                return forced, None
            case Inject():
                return forced, GoldenRows(self._rows_of(golden, RECORD, tokens))
            case Cancel() as cancel:
                return forced, self._cancelled(golden, cancel)

    def _share(self, options: Options) -> Options:
        """This rank's: a budget is for all of them together."""
        share = options.max_bytes and options.max_bytes // self._world()
        return replace(options, max_bytes=share, ring_share=self._world())

    def _cancelled(self, golden: Trace, cancel: Cancel) -> CancelledRows:
        """Keeps both passes' rows for the next time: a bisection runs many passes over the same two."""
        assert self._session is not None
        keys = (str(golden.path), RECORD), (str(cancel.injected), INJECTED)
        if set(self._tables) != set(keys):
            tokens = golden_tokens(golden)
            if self._injected is not None:
                self._injected.close()
            self._injected = injected = open_trace(cancel.injected)  # read as passes go on
            self._tables = {
                keys[0]: self._rows_of(golden, RECORD, tokens),
                keys[1]: self._rows_of(injected, INJECTED, tokens, own=True),
            }
        names = {site.slot: site.name for site in self._session.sites}
        rows, measured = (self._tables[key] for key in keys)
        return CancelledRows(rows, measured, names, cancel.selection)

    def _rows_of(
        self, trace: Trace, name: str, tokens: Mapping[tuple[int, int], list[int]], *, own: bool = False
    ) -> RowTables:
        assert self._session is not None
        sites, rank = self._session.sites, self._session.rank
        site_map = None if own else map_of(with_roles(trace.sites(name, trace.ranks(name)[0]), VLLM), sites)
        return RowTables(
            trace, name, tokens, sites, rank, self._world(), self._session.device, own=own, site_map=site_map
        )

    def _do_end(self) -> dict[str, Any]:
        return {} if self._session is None else self._session.end_pass()

    def _open(self, golden: Path) -> Trace:
        if self._golden is None or self._golden[0] != golden:
            self._golden = (golden, open_trace(golden))
        return self._golden[1]

    def _meta(self) -> dict[str, Any]:
        """What only the engine knows of itself, where a command of the user's started it."""
        config = self._worker.vllm_config
        engines = getattr(config.parallel_config, "data_parallel_size", 1)
        return {
            "rank": self._worker.rank, "world": self._world(), "model": str(config.model_config.model),
            "engines": max(engines, data_parallel_rank(config) + 1), "served": _served(config.model_config),
        }  # fmt: skip

    def _world(self) -> int:
        return int(self._worker.vllm_config.parallel_config.tensor_parallel_size)


def _served(config: Any) -> list[str]:
    """The names under which a server offers the model."""
    names = getattr(config, "served_model_name", None) or []
    return [str(name) for name in ([names] if isinstance(names, str) else names)]


def _room() -> Path | None:
    """Where the parent of a recorded command gives its orders."""
    room = os.environ.get(ROOM)
    return Path(room) if room else None


def _recording_options() -> Options:
    """How a command's recording was asked for."""
    return Options.from_dict(json.loads(os.environ.get(OPTIONS, "{}")))


def _end_with(worker: Any, session: Session) -> Callable[[], None]:
    """Ends the recording with the process, and with an engine that its user lets go of; returns what ends it.

    What is registered for the end of the process holds neither: the model would stay in memory with them.
    """
    starter, held = Starter(), weakref.ref(session)

    def end() -> None:
        session = held()
        if session is None:
            return
        # A worker ends by itself when its engine's process was killed. An engine in the user's own process may
        # well be there longer than the shell that started it.
        if multiprocessing.parent_process() is not None and starter.gone():
            session.trigger(ERROR, None, STARTER_GONE)
        session.end_pass()

    def gone() -> None:
        atexit.unregister(end)
        session.let_go()

    atexit.register(end)
    weakref.finalize(worker, gone).atexit = False
    return end


def _watch_weights(model: Any, session: Session) -> None:
    """Counts updates of a running engine's weights: reinforcement learning loads new ones between generations."""
    if hasattr(model, "load_weights"):

        def load(original: Any, *args: Any, **kwargs: Any) -> Any:
            session.weights_updated()
            return original(*args, **kwargs)

        wrap_method(model, "load_weights", load)
