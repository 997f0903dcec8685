"""Packing a trace: which segments are copied, and which are re-encoded first."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tracereplay.errors import UsageError
from tracereplay.storage.files import File, LocalFile
from tracereplay.trace.directory import refuse_live, segment_path
from tracereplay.trace.manifest import FORMAT
from tracereplay.trace.open import Trace
from tracereplay.trace.packfile import write_pack
from tracereplay.trace.place import Place
from tracereplay.trace.rewrite import references_to, rewrite
from tracereplay.trace.upgrade import is_current, upgrade

__all__ = ["STRONG_LEVEL", "pack_trace"]

STRONG_LEVEL = 19


def pack_trace(
    trace: Trace, out: Path, *, level: int | None = None, base: Trace | None = None, force: bool = False
) -> None:
    """Writes ``trace`` as one file.

    Args:
        trace: complete or interrupted.
        out: path of the file.
        level: of zstandard, 1 to 22; None copies chunks as they are stored, and segments of this version of the
            format byte for byte.
        base: store tensors as their difference from this trace's, where it has a counterpart. The reader then
            needs it.
        force: replace a trace at ``out`` once the new one is complete.

    Raises:
        UsageError: ``out`` exists and must stay (see `Place`), cannot be written, or ``base`` is itself stored as
            a difference.
        TraceError: ``trace`` cannot be read.
    """
    if isinstance(trace.path, Path):
        refuse_live(trace.path)
    place = Place(out, force=force, inputs=[*trace.read_from, *(base.read_from if base is not None else ())])
    manifest = {k: v for k, v in trace.manifest.items() if k != "check"} | {"format": FORMAT}
    if base is not None:
        if base.run.base:
            raise UsageError(f"{base.path} is itself stored as a difference; give the trace that it differs from.")
        named = {"name": Path(str(base.path)).name, "digest": base.digest()}
        manifest["run"] = {**trace.manifest["run"], "base": named}
    elif level is not None:
        manifest["run"] = {k: v for k, v in trace.manifest["run"].items() if k != "base"}
    with tempfile.TemporaryDirectory(prefix="tracereplay-pack-") as scratch:
        segments = {
            segment_path(Path(), *key).name: _stored(trace, key, Path(scratch), level, base) for key in trace.parts
        }
        write_pack(place.path, manifest, segments)
    place.put()


def _stored(trace: Trace, key: tuple[str, int], scratch: Path, level: int | None, base: Trace | None) -> File:
    segment = trace.part(key)
    path = segment_path(scratch, *key)
    if level is None and base is None:
        if is_current(segment):
            return trace.file(key)
        upgrade(segment, path)
        return LocalFile(path)
    references = None if base is None else references_to(base, segment, key)
    rewrite(segment, path, level=level or STRONG_LEVEL, references=references, base=base)
    return LocalFile(path)
