"""A bundle in the place of a golden trace: checked whole before anything is made of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tracereplay.bundle import check_bundle, refuse_mode, used_model
from tracereplay.errors import UsageError
from tracereplay.trace.bundled import is_bundle

__all__ = ["model_for"]


@contextmanager
def model_for(golden: Path, model: Path | None, bundled: bool, mode: str) -> Iterator[Path | None]:
    """The model's directory that a replay is given.

    Args:
        golden: a trace, or a bundle of one.
        model: the user's directory, if given.
        bundled: whether the model in the bundle is to be used.
        mode: of the replay.

    Raises:
        UsageError: what is asked for needs what the bundle lacks, or there is no bundle.
        TraceError: the bundle is not what it says.
    """
    if not is_bundle(golden):
        if bundled:
            raise UsageError(f"--use-bundled-weights is for bundles, and {golden} is none; give --model DIR.")
        yield model
        return
    refuse_mode(check_bundle(golden), golden, mode)
    if not bundled:
        yield model
        return
    if model is not None:
        raise UsageError("--model and --use-bundled-weights name two models; give one of them.")
    with tempfile.TemporaryDirectory(prefix="tracereplay-model-") as folder:
        yield used_model(golden, Path(folder))
