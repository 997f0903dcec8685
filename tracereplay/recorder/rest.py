"""What is left of a pass in which no step comes any more: to hand over, and to wait for the writer.

It needs nothing of the session that a step of the engine would wait for, so that another thread may do it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from tracereplay.recorder.control import Control
from tracereplay.recorder.handover import Handover
from tracereplay.recorder.owed import Last, Owed
from tracereplay.recorder.writer_client import WriterClient

__all__ = ["Rest"]

PATIENCE = 5.0  # seconds to wait for an arena, to say what steps that were left out had


class Rest(NamedTuple):
    """See the module.

    Args:
        writer, handover: of the pass.
        control: of a recording that took orders.
        owed: what steps that were left out had.
        last: the step that says so; None: there is nothing to say.
        summary: for the end mark.
    """

    writer: WriterClient
    handover: Handover
    control: Control | None
    owed: Owed
    last: Last | None
    summary: Mapping[str, Any]

    def finish(
        self, errors: dict[str, int], guarded: Callable[[], AbstractContextManager[None]], patience: float | None
    ) -> None:
        """Waits until everything is written and the segment is closed.

        Args:
            errors: of the pass; those of the writer are added.
            guarded: counts errors there, and raises none.
            patience: seconds that the writer may be silent.
        """
        if self.last is not None:
            with guarded():
                self.owed.pay_at_last(self.last, self.writer, self.handover, PATIENCE)
        with guarded():
            self.handover.close()
        with guarded():
            self.writer.close(self.summary, whole=not errors, patience=patience)
        errors.update(self.writer.errors)
