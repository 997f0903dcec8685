"""A small model as data in a bundle: its tensors and what of its configuration is known to be harmless.

Written only if asked for (``--with-weights``), and read only if asked for (``--use-bundled-weights``). There is
never code in it: an engine loads it as it loads any checkpoint whose code is not trusted.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tracereplay.bundle.manifest import MODEL
from tracereplay.errors import BadBundle, UsageError
from tracereplay.storage.checkpoint import entries
from tracereplay.storage.zipped import Zipped
from tracereplay.trace.chunk import unique

__all__ = ["unpack_model", "write_model"]

_INDEX = "model.safetensors.index.json"
_COPIED = ("tokenizer.json",)
_CONFIGURED = ("config.json", "generation_config.json", "tokenizer_config.json", _INDEX)
_CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
_MOST = 16 << 20  # bytes of a file of JSON
_WORD = re.compile(r"[A-Za-z0-9_+.:-]{1,80}", re.ASCII)
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_TOKEN = re.compile(r"[^\s/\\]{1,40}")
_SHARD = re.compile(r"[\w-]{1,80}\.safetensors", re.ASCII)
_BLOCK = 4 << 20


def write_model(source: Path, folder: Path) -> Iterator[str]:
    """Writes a model's files into ``folder``, which is there.

    Args:
        source: the model's directory.
        folder: where copies go.

    Returns:
        Names of what was written.

    Raises:
        UsageError: the model cannot be given away as data: it has no safetensors files, or needs code.
    """
    shards = sorted(source.glob("*.safetensors"))
    if not shards or not (source / "config.json").is_file():
        raise UsageError(f"{source} has no config.json or no safetensors files, and --with-weights needs both.")
    for path in shards:
        if not _SHARD.fullmatch(path.name):
            raise UsageError(f"{path} is named so that it cannot be bundled; rename it to model.safetensors.")
        _copy_tensors(path, folder / path.name)
        yield path.name
    for name in _CONFIGURED:
        if (source / name).is_file():
            text = json.dumps(_harmless(_read(source / name)), indent=2)
            (folder / name).write_text(text, encoding="utf-8")
            yield name
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
            yield name


def _copy_tensors(source: Path, out: Path) -> None:
    """A safetensors file without what its maker wrote about it."""
    found = entries(source)
    header = json.dumps({name: entry for name, _, entry in found}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    start = found[0][1] if found else source.stat().st_size
    with source.open("rb") as file, out.open("xb") as copy:
        copy.write(struct.pack("<Q", len(header)) + header)
        file.seek(start)
        shutil.copyfileobj(file, copy, _BLOCK)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        said = json.loads(path.read_bytes())
        if not isinstance(said, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}.") from error
    if any(said.get(name) for name in _CODE):
        raise UsageError(f"{path} names code of the model's, which no bundle holds; leave out --with-weights.")
    return said


def _harmless(value: Any, name: str = "") -> Any:
    """Numbers and words; other texts are left out, and so are keys for private use."""
    if isinstance(value, Mapping):
        kept = {key: part for key, part in value.items() if key[:1] != "_" and _WORD.fullmatch(key)}
        found = {key: _harmless(part, key) for key, part in kept.items()}
        return {key: part for key, part in found.items() if part is not None or value[key] is None}
    if isinstance(value, list):
        return [part for part in (_harmless(part, name) for part in value) if part is not None]
    if isinstance(value, str):
        pattern = _TOKEN if name in _TOKENS else _WORD
        return value if pattern.fullmatch(value) else None
    return value


def unpack_model(archive: Zipped, name: str, folder: Path) -> Path:
    """The model in a bundle, written into ``folder``.

    Args:
        archive: the bundle, whose digests were checked.
        name: of the bundle, for messages.
        folder: a directory of the caller's.

    Raises:
        BadBundle: its configuration asks for code, or is no configuration.
        UsageError: there is no model in it.
    """
    members = [member for member in archive.members if member.startswith(MODEL)]
    if f"{MODEL}config.json" not in members:
        raise UsageError(f"{name} holds no model; say with --model DIR where yours is.")
    for member in members:
        if member.endswith(".json"):
            _refuse_code(archive.read(member, _MOST), name, member)
        with (folder / member.removeprefix(MODEL)).open("xb") as file:
            for block in archive.blocks(member):
                file.write(block)
    return folder


def _refuse_code(data: bytes, name: str, member: str) -> None:
    try:
        said = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadBundle(f"{name} holds a {member} that cannot be read: {error}.") from error
    if not isinstance(said, dict) or any(said.get(key) for key in _CODE):
        raise BadBundle(f"{name} holds a {member} that asks for code, so that its model is not used.")
