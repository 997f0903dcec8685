"""Which tokenizer a trace's tokens may be shown with: the user's, or the recorded model's own, by its digest.

Only a file that stands beside the model and has the digest that the trace says is read: a trace may name any path.
"""

from __future__ import annotations

import stat
from pathlib import Path

import xxhash

from tracereplay.errors import UnsafeRequest, UsageError
from tracereplay.gate import weights_directory
from tracereplay.trace import Trace

__all__ = ["tokenizer_file"]

_NAME = "tokenizer.json"
_MOST = 64 << 20  # bytes


def tokenizer_file(trace: Trace, model: Path | None) -> Path | None:
    """The file of the tokenizer; None: there is none that is known to be the one that was recorded.

    Args:
        trace: whose tokens are shown.
        model: the user's directory of the model, whose tokenizer is taken as it is.

    Raises:
        UsageError: the user's directory has no tokenizer.
    """
    try:
        directory = weights_directory(trace, model)
    except UnsafeRequest:  # of a model within the trace
        return None
    if directory is None:
        return None
    path = directory / _NAME
    try:
        found = path.stat()
        usable = stat.S_ISREG(found.st_mode) and found.st_size <= _MOST
        known = usable and (model is not None or _digest(path) == trace.run.model_files.get(_NAME))
    except (OSError, ValueError):
        known = False
    if not known and model is not None:
        raise UsageError(
            f"{model} has no {_NAME} that can be read; leave out --model, or give the model's directory."
        )
    return path if known else None


def _digest(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())
