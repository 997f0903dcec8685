"""How a session's pass begins and ends: its segment, the writer process that writes it, and who waits for that.

A part of `session.Session`, in a module of its own; it touches no step but one that is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from tracereplay.device import Device
from tracereplay.hooks.captures import unwatch_captures
from tracereplay.hooks.census import Census
from tracereplay.hooks.graphs import traced
from tracereplay.hooks.taps import unlisten
from tracereplay.recorder.control import Control
from tracereplay.recorder.handover import Handover
from tracereplay.recorder.kernels import KernelRecorder
from tracereplay.recorder.lacking import Lacking
from tracereplay.recorder.last_step import LastStep
from tracereplay.recorder.obeying import Obeying
from tracereplay.recorder.options import KERNEL, Options
from tracereplay.recorder.owed import Owed
from tracereplay.recorder.replacement import Replacement
from tracereplay.recorder.reports import Reports
from tracereplay.recorder.rest import Rest
from tracereplay.recorder.step import OpenCall
from tracereplay.recorder.writer_client import WriterClient
from tracereplay.recorder.writer_handle import WriterHandle

__all__ = ["Lifetime"]

SILENCE = 20.0  # seconds that a writer may be silent when such an engine ends: a disk may hang for ever


class Lifetime(Obeying):
    """See the module."""

    device: Device
    compiled: Sequence[torch.nn.Module]  # those of which no Python code runs in a step
    scope: Callable[[OpenCall | None], AbstractContextManager[None]] | None
    _process: WriterHandle | None
    _replacement: Replacement | None
    _reports: Reports | None
    _flagged: frozenset[int]
    _kernels: KernelRecorder | None
    _engine_steps: int
    _closing: AbstractContextManager[Any]  # held by who ends a pass, which takes longer than a step may wait

    # What the session has.
    @property
    def _number(self) -> int:
        raise NotImplementedError

    def _waits(self) -> bool:
        raise NotImplementedError

    def _watch_kernels(self, call: OpenCall | None) -> AbstractContextManager[None]:
        raise NotImplementedError

    def begin_pass(
        self, path: Path, meta: Mapping[str, Any], replacement: Replacement | None = None,
        options: Options | None = None, model: torch.nn.Module | None = None, control: Control | None = None,
        paused: bool = False,
    ) -> None:  # fmt: skip
        """Starts recording into a new segment.

        Args:
            path: of the segment.
            meta: plain data about this process.
            replacement: feeds recorded values; None records only.
            options: see there.
            model: of which a census is taken, and whose parameters and buffers kernels take by name.
            control: by which it takes orders while it runs.
            paused: whether it begins with a pause.

        Raises:
            OSError, WriterGone: the segment or its writer cannot be created.
            Unsupported: it cannot be recorded inside CUDA graphs.
        """
        self._options = options or Options()
        if self.graphs is not None:
            self.graphs.refuse(self._options, replacement)
        self._errors.clear()
        self._silent.clear()
        self._steps = self._dropped = self._weight_updates = self._engine_steps = self._passed = 0
        self._ended = None
        self._last, self._over, self._begun, self._under_way = None, False, 0, False
        self._control, self._segment = control, (path, dict(meta))
        self._resting, self._lacking, self._owed = paused, Lacking(), Owed()
        self._open(path, meta)
        self._show()
        self._replacement = replacement
        self._left_out = self._options.left_out(self.sites)
        self._wanted = self._watchable()
        self._model = model if replacement is None else None
        if self._model is not None:
            self._census, self._censuses = self._new_census(self._model), 0
        if self._options.level == KERNEL and model is not None:
            self._kernels = KernelRecorder(model, check_writes=self._options.check_writes, failed=self.failed)
            self.scope = self._watch_kernels

    def _open(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Opens a segment, or a ring, in a writer process that has none."""
        ring = None if self._options.ring is None else self._options
        self._writer = WriterClient(
            self.prepare(), path, meta, codec_id=self._options.codec, max_bytes=self._options.max_bytes,
            recipients=self._options.recipients, withhold=self._options.withhold, live=self._control is not None,
            ring=ring, room=None if self._control is None else self._control.room,
        )  # fmt: skip
        self._errors.update(self._writer.errors)
        self._handover = Handover(
            self._writer, self._options.in_flight, idle=self.device.asynchronous, failed=self.failed
        )
        self._reports = (
            None if ring is None else Reports(ring, self.sites, self._writer, self._handover, self._guarded)
        )
        self._flagged = frozenset() if self._reports is None else self._reports.flagged
        self._writer.sites(self.sites)

    def prepare(self) -> WriterHandle:
        """Starts a writer process unless there is one that is ready; the next pass need not wait for it then.

        Raises:
            OSError: it cannot be started.
        """
        if self._process is None or not self._process.ready:
            if self._process is not None:
                self._process.close()
            self._process = WriterHandle(self.device)
        return self._process

    def _new_census(self, model: torch.nn.Module) -> Census | None:
        """None: a compiler's graph could not be read, or CUDA graphs hide what computes."""
        if self.graphs is not None:
            return None
        graphs = {module: traced(module) for module in self.compiled}
        known = {module: graph for module, graph in graphs.items() if graph is not None}
        return Census(model, self.sites, known) if len(known) == len(graphs) else None

    def end_pass(self) -> dict[str, Any]:
        """Waits for the writer and closes the segment; returns a summary with errors, if any."""
        with self._closing:
            with self._turn:
                patience = None if self._waits() else SILENCE
                rest = self._leave()
            self._finish(rest, patience)
        return {
            "steps": self._steps, "errors": dict(self._errors), "dropped": self._dropped, "ended": self._ended,
        }  # fmt: skip

    def end_between_steps(self, last: LastStep) -> bool:
        """Ends the pass from a thread of its own, unless a step is under way or is still to come.

        The engine's next step, which is not recorded, does not wait for the writer.

        Args:
            last: that the ranks of the engine agree on; each further step is asked of it.

        Returns:
            Whether the pass has ended.
        """
        with self._closing:
            with self._turn:
                self._last = last
                if self._writer is not None and not last.is_over(self._begun, idle=not self._under_way):
                    return False
                patience = None if self._waits() else SILENCE
                rest = self._leave()
            self._finish(rest, patience)
        return True

    def _leave(self) -> Rest | None:
        """Records nothing more; returns what is left to do, for which no engine need wait."""
        writer, handover, control = self._writer, self._handover, self._control
        self._kernels = self._census = self.scope = self._replacement = self._model = None
        if writer is None or handover is None:
            return None
        self._give_up_step()
        owed, last = self._owed, self._what_is_owed(self._number)
        rest = Rest(writer, handover, control, owed, last, self._summary())
        self._writer = self._handover = self._reports = self._control = None
        self._owed, self._lacking = Owed(), Lacking()
        return rest

    def _finish(self, rest: Rest | None, patience: float | None) -> None:
        if rest is None:
            return
        rest.finish(self._errors, self._guarded, patience)
        if rest.control is not None:
            self._ended = self._ended or "end"
            self._show_on(rest.control)
            rest.control.close()

    def let_go(self) -> None:
        """The engine is gone, and what belongs to it is not held any longer, nor is the writer process."""
        self.end_pass()
        unlisten(self)
        unwatch_captures(self.graphs)
        self.graphs, self.compiled = None, ()
        if self._process is not None:
            self._process.close()
            self._process = None

    @property
    def segment(self) -> Path:
        """Of the pass that was begun last."""
        return self._segment[0]

    def _watchable(self) -> frozenset[int]:
        """The sites of which something is kept, or may be replaced."""
        nowhere, given = self._left_out["in"] & self._left_out["out"], self._replacement
        taken = {slot for slot in nowhere if given is not None and given.takes(slot)}
        return frozenset(site.slot for site in self.sites) - (nowhere - taken - self._flagged)

    @property
    def recording(self) -> bool:
        """Whether a pass is being recorded, and not paused."""
        return self._writer is not None and not self._resting and not self._over

    def _summary(self) -> dict[str, Any]:
        """For the end mark."""
        counts = {"ended": self._ended, "dropped": self._dropped, "weights": self._weight_updates}
        return {**counts, **self._lacking.summary()}
