"""The passes of a trace, by their names in the file."""

from __future__ import annotations

__all__ = ["CANCELLED", "INJECTED", "INJECTED_AGAIN", "ISOLATED", "RECORD", "REFERENCE", "RERUN"]

RECORD = "record"  # the only pass of a recording: the engine runs freely and is observed
RERUN = "rerun"  # golden's tokens are forced, nothing else
INJECTED = "injected"  # each operator is given golden's inputs, too
INJECTED_AGAIN = "injectedtwice"  # the same once more, to see what does not repeat itself
CANCELLED = "cancelled"  # a rerun in which the own errors of chosen operators are taken away
ISOLATED = "isolated"  # recorded calls run one by one, without an engine
REFERENCE = "reference"  # the same kernels on float64 inputs
