"""The manifest of a bundle: what is in it, with sizes and digests, and what was left out.

    {"schema": 1, "tracereplay": "0.1.0", "made": "2026-01-01T00:00:00+00:00", "redacted": null | "prompts" | ...,
     "verdict": {...}, "whole": {...}, "golden": {...}, "reduced": ["..."], "removed": ["..."], "absent": ["..."],
     "files": {"report.html": {"size": 1234, "sha256": "..."}, ...}}

``verdict`` is what the traces in the bundle show, ``whole`` what those showed that it was made of: outcome, cause,
and kind, site and class of the first divergence, or else the first differing token. ``golden`` names the model,
and has digests: of the whole trace, of the one in the bundle and of the model's weights. ``reduced`` says what was
made smaller, ``removed`` what was left out, ``absent`` what a bundle mostly has and this one has not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tracereplay.bundle.redaction import Redaction
from tracereplay.errors import BadBundle, DamagedTrace
from tracereplay.trace.chunk import unique
from tracereplay.verdict import Verdict

__all__ = ["MANIFEST", "MODEL", "POLICY", "Listed", "Manifest", "read_manifest", "shown_by"]

MANIFEST = "manifest.json"
MODEL = "model/"
POLICY = "policy.toml"
SCHEMA = 1
MOST = 1 << 20  # bytes
_SHA = re.compile(r"[0-9a-f]{64}", re.ASCII)
# What a bundle may hold; a file of any other name is not read.
_NAMES = re.compile(
    r"README\.md|report\.html|verdict\.json|golden\.pack|candidate\.pack|statistics\.json|errors\.json|policy\.toml|"
    r"environment/(golden|candidate)\.txt|reproducer/(repro\.py|inputs\.safetensors|expected\.safetensors)|"
    r"model/([\w-]+\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json|"
    r"tokenizer\.json|tokenizer_config\.json)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as the manifest lists it: its size in bytes, and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """See the module."""

    tracereplay: str
    made: str
    redacted: Redaction | None
    verdict: Mapping[str, Any]
    whole: Mapping[str, Any]
    golden: Mapping[str, Any]
    reduced: tuple[str, ...]
    removed: tuple[str, ...]
    absent: tuple[str, ...]
    files: Mapping[str, Listed] = field(default_factory=dict)

    def as_text(self) -> str:
        """As JSON, indented."""
        said = {
            "schema": SCHEMA,
            "tracereplay": self.tracereplay,
            "made": self.made,
            "redacted": None if self.redacted is None else self.redacted.value,
            "verdict": dict(self.verdict),
            "whole": dict(self.whole),
            "golden": dict(self.golden),
            "reduced": list(self.reduced),
            "removed": list(self.removed),
            "absent": list(self.absent),
            "files": {name: {"size": f.size, "sha256": f.sha256} for name, f in sorted(self.files.items())},
        }
        return json.dumps(said, indent=2, allow_nan=False) + "\n"


def read_manifest(data: bytes, name: str) -> Manifest:
    """The inverse of `Manifest.as_text`, of a stranger's bytes.

    Args:
        data: at most `MOST` bytes.
        name: of the bundle, for messages.

    Raises:
        BadBundle: it is not a manifest, or names files that no bundle has.
    """
    try:
        said = json.loads(data, object_pairs_hook=unique)
        if not isinstance(said, dict) or said.get("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}, so that it may be of a later version of tracereplay")
        files = {_file(path): _listed(entry) for path, entry in said["files"].items()}
        redacted = None if said["redacted"] is None else Redaction(said["redacted"])
        verdict, whole, golden = (dict(said[key]) for key in ("verdict", "whole", "golden"))
        reduced, removed, absent = (_texts(said[key]) for key in ("reduced", "removed", "absent"))
        return Manifest(
            str(said["tracereplay"]), str(said["made"]), redacted, verdict, whole, golden, reduced, removed,
            absent, files,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, DamagedTrace) as error:
        raise BadBundle(f"{name} has a manifest that cannot be read: {error}.") from error


def _file(name: str) -> str:
    if not _NAMES.fullmatch(name):
        raise ValueError(f"it lists {name[:80]!a}, which no bundle has")
    return name


def _listed(said: Mapping[str, Any]) -> Listed:
    size, digest = said["size"], said["sha256"]
    if type(size) is not int or size < 0 or not isinstance(digest, str) or not _SHA.fullmatch(digest):
        raise ValueError("a size or a digest that is none")
    return Listed(size, digest)


def _texts(said: Any) -> tuple[str, ...]:
    if not isinstance(said, list) or not all(isinstance(text, str) for text in said):
        raise ValueError("something else where sentences belong")
    return tuple(said)


def shown_by(verdict: Verdict) -> dict[str, Any]:
    """What two traces show, in short: by this a bundle's are held against those that it was made of."""
    first = verdict.first_divergence
    token = verdict.tokens.first_divergence
    return {
        "verdict": verdict.verdict,
        "cause": verdict.cause,
        "first_divergence": None if first is None else {
            "kind": first.kind, "site": first.site, "operator": first.operator, "class": first.error_class,
        },
        # Requests are numbered anew where there are fewer.
        "first_token": None if token is None or first is not None else {"position": token.position},
    }  # fmt: skip
