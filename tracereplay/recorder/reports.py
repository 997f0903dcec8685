"""What a session tells its ring beside the steps, where it has one (`recorder.flight`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from tracereplay.event import RowMap, Site
from tracereplay.hooks.kernels import unseen
from tracereplay.recorder.handover import Handover
from tracereplay.recorder.options import Options
from tracereplay.recorder.step import PendingStep
from tracereplay.recorder.triggers import NONFINITE, Ended, Fired
from tracereplay.recorder.writer_client import WriterClient

__all__ = ["Reports"]


class Reports:
    """See the module. What is said comes after the steps that are finished.

    ``flagged`` has the slots of logits of which it is looked at whether they are finite, recorded or not.

    Args:
        options: of the recording.
        sites: all.
        writer, handover: of the pass.
        guarded: counts errors, and raises none.
    """

    def __init__(
        self, options: Options, sites: Sequence[Site], writer: WriterClient, handover: Handover,
        guarded: Callable[[], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        self._writer, self._handover, self._guarded = writer, handover, guarded
        wanted = NONFINITE in options.triggers
        self.flagged = frozenset(site.slot for site in sites if site.role == "logits" and wanted)

    def ended(self, ends: Sequence[Ended]) -> None:
        """See `Session.sequences_ended`."""
        if ends:
            self._say(lambda: self._writer.ended(ends))

    def fired(self, fired: Fired) -> None:
        """Something that the writer cannot see."""
        self._say(lambda: self._writer.fired(fired))

    def dump(self, trace: Path, trigger: Mapping[str, Any], after: int) -> None:
        """See `flight.FlightRecorder.dump`."""
        self._say(lambda: self._writer.dump(trace, trigger, after))

    def flag(self, step: PendingStep, x: torch.Tensor, rows: RowMap) -> None:
        """Notes which rows of logits are finite: their sums are, since no finite logits are so large."""
        with self._guarded(), unseen():
            step.add_flags(torch.isfinite(x.sum(-1, dtype=torch.float32)), rows)

    def _say(self, what: Callable[[], None]) -> None:
        with self._guarded():
            self._handover.between_steps(what)
