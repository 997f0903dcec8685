"""Whether a bundle is what its manifest says, and safe to open; nothing in it is executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tracereplay.bundle.manifest import MANIFEST, Manifest, read_manifest
from tracereplay.bundle.redaction import Redaction
from tracereplay.bundle.weights import unpack_model
from tracereplay.errors import BadBundle, DamagedTrace, TraceError, UsageError
from tracereplay.storage.files import LocalFile
from tracereplay.storage.zipped import Zipped
from tracereplay.trace import open_trace
from tracereplay.trace.bundled import GOLDEN
from tracereplay.trace.chunk import unique
from tracereplay.trace.verify import verify
from tracereplay.verdict import Verdict

__all__ = ["Bundle", "check_bundle", "refuse_mode", "used_model"]

_NEEDED = ("README.md", "report.html", "verdict.json", GOLDEN)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked.

    Args:
        contents: what it says of itself.
        verdict: what its traces showed.
        size: of the file, bytes.
        inflated: bytes of all that is in it.
    """

    contents: Manifest
    verdict: Verdict
    size: int
    inflated: int


def check_bundle(path: Path) -> Bundle:
    """Reads every byte of a bundle, and checks sizes, digests, names, the verdict and the golden trace.

    Raises:
        NotATrace: it is no bundle.
        BadBundle: it is not safe to open, or not what it says.
    """
    with _opened(path) as archive:
        manifest = read_manifest(archive.read(MANIFEST, 1 << 20), path.name)
        _compare_names(archive, manifest, path.name)
        for name, listed in manifest.files.items():
            digest, size = hashlib.sha256(), 0
            for block in archive.blocks(name):
                digest.update(block)
                size += len(block)
            if (size, digest.hexdigest()) != (listed.size, listed.sha256):
                raise BadBundle(f"{path.name} is damaged or was changed: {name} has not the digest that it lists.")
        verdict = _verdict(archive.read("verdict.json"), path.name)
        inflated = sum(member.size for member in archive.members.values())
    _check_golden(path, manifest)
    return Bundle(manifest, verdict, path.stat().st_size, inflated)


def refuse_mode(bundle: Bundle, path: Path, mode: str) -> None:
    """Raises UsageError if what was left out of a bundle is needed for a mode of `replay`."""
    if bundle.contents.redacted is Redaction.values and mode != "rerun":
        raise UsageError(
            f"{path} was made without tensors (bundle --redact values), so only its tokens and logprobs can be "
            "compared; give --mode rerun."
        )
    if bundle.contents.redacted is Redaction.tokens and mode != "isolated":
        raise UsageError(
            f"{path} was made without tokens (bundle --redact tokens), so it cannot be generated again; unzip it "
            "and compare golden.pack with candidate.pack, or replay its operators with --mode isolated."
        )


def used_model(path: Path, folder: Path) -> Path:
    """The model in a bundle that was checked, written into ``folder``.

    Raises:
        UsageError, BadBundle: see `weights.unpack_model`.
    """
    with _opened(path) as archive:
        return unpack_model(archive, path.name, folder)


@contextmanager
def _opened(path: Path) -> Iterator[Zipped]:
    if not path.is_file():
        raise UsageError(f"There is no bundle at {path}; give a file that bundle -o wrote.")
    file = LocalFile(path)
    try:
        yield Zipped(file)
    finally:
        file.close()


def _compare_names(archive: Zipped, manifest: Manifest, name: str) -> None:
    there, listed = set(archive.members) - {MANIFEST}, set(manifest.files)
    if extra := sorted(there - listed):
        raise BadBundle(f"{name} holds {extra[0]}, which its manifest does not list.")
    if lacking := sorted((listed | set(_NEEDED)) - there):
        raise BadBundle(f"{name} lacks {lacking[0]}.")


def _verdict(data: bytes, name: str) -> Verdict:
    try:
        return Verdict.from_dict(json.loads(data, object_pairs_hook=unique))
    except (ValueError, RecursionError, UsageError, DamagedTrace) as error:
        raise BadBundle(f"{name} holds a verdict.json that is no verdict: {error}") from error


def _check_golden(path: Path, manifest: Manifest) -> None:
    """The golden trace is intact, and the one that the manifest names."""
    with open_trace(path) as trace:
        for report in verify(trace):
            if report.state == "damaged":
                raise TraceError(f"The golden trace in {path.name} is damaged: {report.problem}")
        if trace.digest() != manifest.golden.get("digest"):
            raise BadBundle(f"{path.name} holds another golden trace than its manifest names.")
