"""Packing a trace: which segments are copied, and which are re-encoded first."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tracereplay.errors import UsageError
from tracereplay.storage.files import File, LocalFile
from tracereplay.trace.bases import Counterparts, RowBases, by_name
from tracereplay.trace.directory import refuse_live, segment_path
from tracereplay.trace.manifest import FORMAT
from tracereplay.trace.open import Trace
from tracereplay.trace.packfile import write_pack
from tracereplay.trace.place import Place
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.requests import described, rewritten
from tracereplay.trace.rewrite import rewrite
from tracereplay.trace.sealed import Seal
from tracereplay.trace.sources import Key
from tracereplay.trace.upgrade import is_current, upgrade
from tracereplay.trace.withheld import Withheld
from tracereplay.trace.withholding import check_withholding, manifest_without, segment_without

__all__ = ["STRONG_LEVEL", "pack_trace"]

STRONG_LEVEL = 19


def pack_trace(
    trace: Trace, out: Path, *, level: int | None = None, base: Trace | None = None,
    counterparts: Counterparts = by_name, force: bool = False, recipients: Sequence[str] = (),
    withheld: Withheld | None = None,
) -> None:  # fmt: skip
    """Writes ``trace`` as one file.

    Args:
        trace: complete or interrupted.
        out: path of the file.
        level: of zstandard, 1 to 22; None copies chunks as they are stored, and segments of this version of the
            format byte for byte, or is `STRONG_LEVEL` with a base.
        base: store tensors as their difference from this trace's, where it has their rows. The reader then
            needs it.
        counterparts: which of the base's operators is which.
        force: replace a trace at ``out`` once the new one is complete.
        withheld: puts digests in the place of tokens; segments are then written anew, with another digest.
        recipients: seal it for these; none: for those whom ``trace`` is sealed for, if it is.

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
    if recipients:
        manifest["recipients"] = list(recipients)
    if withheld is not None:
        check_withholding(trace)
        manifest = manifest_without(trace, manifest, withheld)
    with tempfile.TemporaryDirectory(prefix="tracereplay-pack-") as scratch:
        segments: dict[str, File] = {}
        for key in trace.parts:
            name, file = segment_path(Path(), *key).name, segment_path(Path(scratch), *key)
            if withheld is None:
                segments[name] = _stored(trace, key, Path(scratch), level, base, counterparts, recipients)
                continue
            segment_without(trace.part(key), key[0], file, withheld, manifest.get("recipients", ()))
            segments[name] = LocalFile(file)
        requests: dict[str, File] = dict(trace.request_files)
        if requests and (recipients or withheld is not None):
            for name, source in trace.request_files.items():
                to = Path(scratch) / name
                rewritten(source, to, manifest.get("recipients", ()), withhold=withheld is not None)
                requests[name] = LocalFile(to)
            told = {name: described(file) for name, file in requests.items()}
            manifest["run"] = {**manifest["run"], "requests": told}
        write_pack(place.path, manifest, segments, requests)
    place.put()


def _stored(
    trace: Trace, key: Key, scratch: Path, level: int | None, base: Trace | None, counterparts: Counterparts,
    recipients: Sequence[str],
) -> File:  # fmt: skip
    segment = trace.part(key)
    seal = Seal.new(recipients) if recipients else segment.seal
    path = segment_path(scratch, *key)
    if level is None and base is None:
        if is_current(segment) and not recipients:
            return trace.file(key)
        upgrade(segment, path, seal)
        return LocalFile(path)
    bases = None if base is None else _bases(base, segment, key, counterparts)
    tensors = None if base is None else base.tensor
    rewrite(segment, path, level=level or STRONG_LEVEL, bases=bases, base=tensors, seal=seal)
    return LocalFile(path)


def _bases(base: Trace, segment: SegmentReader, key: Key, counterparts: Counterparts) -> RowBases | None:
    """Of the base's segment of the same pass, or of its first one, and the same rank; None if there is none."""
    name = key[0] if key in base.parts else next(iter(base.passes), "")
    if (name, key[1]) not in base.parts:
        return None
    source = base.part((name, key[1]))
    file = segment_path(Path(), name, key[1]).name
    return RowBases(source, file, counterparts(source.sites, segment.sites))
