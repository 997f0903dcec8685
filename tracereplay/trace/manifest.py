"""The manifest: what a trace says of its run, and whether it is complete.

    {"format": 2, "state": "incomplete" | "complete", "run": {...}, "passes": {...}, "check": "..."}

``check`` is the xxh3-128 of the rest, as JSON with sorted keys and no spaces: results are evidence, and a changed
digit must not pass for one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from tracereplay.errors import DamagedTrace, TraceError
from tracereplay.trace.chunk import unique
from tracereplay.trace.records import too_deep
from tracereplay.trace.sealed import close_text, open_text

__all__ = ["FORMAT", "MAX_MANIFEST", "read_manifest", "write_manifest"]

FORMAT = 2
SEALED_FORMAT = 3  # of a manifest whose `run` and `passes` are sealed: older readers know neither
READABLE = (1, 2, 3)
MAX_MANIFEST = 64 << 20
MAX_PARTS = 1 << 20  # lists and maps: what takes much more memory than text
MAX_DEPTH = 64


def _is_token(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 62


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, float | int)


# What readers rely on, where it is there.
_SHAPE: Any = {
    "state": str,
    "run": {
        "kind": str,
        "engine": {"name": str, "versions": {}, "settings": {}, "environment": {}},
        "workload": {"settings": {}, "prompts": [{"prompt_token_ids": [_is_token], "sampling": {}}]},
        "notes": [str],
        "observer": {"logprob_abs_diff": {}},
        "base": {"name": str, "digest": str},
        "withheld": {"what": [str], "key": str},
        "began": str,
        "ended": str,
        "command": [str],
        "trigger": {"kind": str, "detail": str, "time": str, "request": int, "step": int},
    },
    "recipients": [str],
}
_RESULT: Any = {"request": int, "sequence": int, "token_ids": [_is_token], "prompt_logprobs": [_is_number]}


def write_manifest(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as it is stored: sealed, if it says for whom (`recipients`)."""
    if recipients := manifest.get("recipients"):
        kept = {key: value for key, value in manifest.items() if key not in ("state", "check")}
        text = close_text(json.dumps(kept).encode(), recipients)
        manifest = {"format": SEALED_FORMAT, "state": manifest["state"], "sealed": text}
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
        UsageError: it is sealed, and this process has no key for it.
        DamagedTrace: it is not a manifest, or not the one that was written.
        TraceError: it is of a later format.
    """
    if len(data) > MAX_MANIFEST:
        raise DamagedTrace(f"{name} is larger than {MAX_MANIFEST} bytes, so it is not a trace's manifest.")
    manifest = _parsed(data, name)
    if manifest["format"] not in READABLE:
        raise TraceError(
            f"{name} is of format {manifest['format']}; this version reads formats {READABLE[0]} to "
            f"{READABLE[-1]}; update tracereplay."
        )
    try:
        whole = manifest.get("check") == _check(manifest)
    except RecursionError:
        whole = False
    if isinstance(manifest.get("sealed"), str) and whole:
        inside = _parsed(open_text(manifest["sealed"], name), name)
        manifest = {**inside, **{key: manifest[key] for key in ("state", "check") if key in manifest}}
    if not all(isinstance(manifest.get(key), dict) for key in ("run", "passes")) or "state" not in manifest:
        raise DamagedTrace(f"{name} lacks one of run, passes and state.")
    if not whole:
        raise DamagedTrace(f"{name} is damaged: it fails its checksum.")
    wrong = _misfit(manifest, _SHAPE, "")
    for key, found in manifest["passes"].items():
        wrong = wrong or _misfit(found, {"requests": [_RESULT]}, f".passes.{key}")
    if wrong:
        raise DamagedTrace(f"{name} is damaged: its {wrong[1:]!r} is not what a recording says there.")
    return manifest


def _parsed(data: bytes, name: str) -> dict[str, Any]:
    try:
        if data.count(b"[") + data.count(b"{") > MAX_PARTS:
            raise ValueError(f"it has more than {MAX_PARTS} lists and maps")
        found = json.loads(data, object_pairs_hook=unique)
        if too_deep(found, MAX_DEPTH):
            raise ValueError(f"lists and maps are nested more than {MAX_DEPTH} deep")
    except (ValueError, RecursionError) as error:
        raise DamagedTrace(f"{name} cannot be read: {error}.") from error
    if not isinstance(found, dict) or type(found.get("format")) is not int:
        raise DamagedTrace(f"{name} is not the manifest of a trace: it has no format number.")
    return found


def _misfit(value: Any, shape: Any, path: str) -> str | None:
    """The path of a part that does not look as `_SHAPE` says; what is not said there may be anything."""
    if value is None:
        return None
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return path
        found = (_misfit(value.get(key), part, f"{path}.{key}") for key, part in shape.items())
        return next(filter(None, found), None)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return path
        return next(filter(None, (_misfit(part, shape[0], path) for part in value)), None)
    return None if (isinstance(value, shape) if isinstance(shape, type) else shape(value)) else path
