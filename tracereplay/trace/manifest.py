"""The manifest: what a trace says of its run, and whether it is complete.

    {"format": 1, "state": "incomplete" | "complete", "run": {...}, "passes": {...}, "check": "..."}

``check`` is the xxh3-128 of the rest, as JSON with sorted keys and no spaces: results are evidence, and a changed
digit must not pass for one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from tracereplay.errors import DamagedTrace, TraceError

__all__ = ["FORMAT", "MAX_MANIFEST", "read_manifest", "write_manifest"]

FORMAT = 1
MAX_MANIFEST = 64 << 20


def write_manifest(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as it is stored."""
    return json.dumps({**manifest, "check": _check(manifest)}).encode()


def _check(manifest: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in manifest.items() if k != "check"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def read_manifest(data: bytes, name: str) -> dict[str, Any]:
    """The inverse of `write_manifest`.

    Args:
        data: at most `MAX_MANIFEST` bytes.
        name: of the file, for messages.

    Raises:
        DamagedTrace: it is not a manifest, or not the one that was written.
        TraceError: it is of a later format.
    """
    if len(data) > MAX_MANIFEST:
        raise DamagedTrace(f"{name} is larger than {MAX_MANIFEST} bytes; that is no trace's manifest.")
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedTrace(f"{name} cannot be read: {error}.") from error
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        raise DamagedTrace(f"{name} is not the manifest of a trace: it has no format number.")
    if manifest["format"] != FORMAT:
        raise TraceError(
            f"{name} is of format {manifest['format']}; this version reads format {FORMAT}; update tracereplay."
        )
    if not all(isinstance(manifest.get(key), dict) for key in ("run", "passes")) or "state" not in manifest:
        raise DamagedTrace(f"{name} lacks one of run, passes and state.")
    try:
        whole = manifest.get("check") == _check(manifest)
    except RecursionError:
        whole = False
    if not whole:
        raise DamagedTrace(f"{name} is damaged: it fails its checksum.")
    return manifest
