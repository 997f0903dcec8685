"""What a bundle may tell of where it was made: by lists of what is known to be harmless, never of what is not.

Numbers stay. A text stays where its name is on a list here or in the gate's, and it is one word; else a mark
stands in its place, the same for the same text, so that a difference stays a difference. The marks are made with a
key of the bundle alone, which nobody keeps: who guesses a text cannot try it.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tracereplay.engines.known import FAMILIES, family_of
from tracereplay.event import UNAPPLIED
from tracereplay.gate import setting_refusal, variable_refusal
from tracereplay.gate.rules import NESTED
from tracereplay.trace.withheld import WITHHELD

__all__ = ["GONE", "Cleaner", "hub_name"]

# One word, as classes, choices and versions are; no path, address or sentence.
_WORD = re.compile(r"[A-Za-z0-9_+.:,*|\[\]-]{1,120}", re.ASCII)
_DEVICE = re.compile(r"[\w .,:()+-]{1,120}", re.ASCII)
_TIME = re.compile(r"[0-9T:.+Z-]{10,40}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{8,64}", re.ASCII)
_HUB = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{7,64})(?:/|$)", re.ASCII)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w-]{0,60}/[A-Za-z0-9][\w.-]{0,100}", re.ASCII)

# Texts among what an engine says of itself that are choices of its own: classes, back ends, formats.
_SETTINGS = (
    "architecture", "attention_backend", "compilation_mode", "cudagraph_*", "custom_ops", "dtype",
    "engine_generation", "head_dtype", "kv_cache_dtype", "load_format", "logprobs_mode", "model_impl",
    "model_runner", "quantization", "rounding", "scheduling_policy", "speculative_config", "flaw",
)  # fmt: skip
# Fields of a configuration that choose one of an engine's own ways; their values are short and have no dots.
_CHOICES = (
    "*_backend", "*_mode", "*_policy", "*_dtype", "*_format", "*_impl", "*_layout", "*_strategy", "*_method",
    "*_type", "*_level", "backend", "*.backend", "policy", "convert",
)  # fmt: skip
_CHOICE = re.compile(r"[A-Za-z0-9_+-]{1,32}", re.ASCII)
# The same of a model's configuration.
_CONFIG = (
    "model_type", "hidden_act*", "*activation*", "rope_*", "quantization_config", "layer_types", "*_dtype",
    "head_dtype", "position_embedding_type",
)  # fmt: skip
_MODEL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "preprocessor_config.json",
    "processor_config.json", "chat_template.jinja", "chat_template.json", "tokenizer.model",
)  # fmt: skip
_RESULT = ("request", "sequence", "token_ids", "logprobs", "prompt_logprobs", "finish_reason", "num_cached_tokens")

# Words of a sentence that may name a place, a person or an address; and what is quoted.
_TELLING = re.compile(r"(?<!\S)(?!key/value(?!\S))\S*[/\\@~=]\S*")
_QUOTED = re.compile(r"\"[^\"]*\"|`[^`]*`|(?<!\w)'[^']*'(?!\w)")
_HOME = re.compile(r"/(?:home|Users)/([^/\s]+)")
_SHORTEST = 5  # characters of a text that is looked for elsewhere; shorter ones stand in words

GONE = "[removed]"


class Cleaner:
    """Says what of traces is told, and keeps count of what is not.

    Args:
        texts: whether prompts, stop texts and grammars stay.
    """

    def __init__(self, *, texts: bool) -> None:
        self.texts = texts
        self._key = secrets.token_bytes(16)
        self._removed: dict[str, set[str]] = {}
        self._arguments: set[str] = set()
        self.private: set[str] = set(_of_this_machine())
        self._known: set[str] = set(self.private)

    @property
    def removed(self) -> list[str]:
        """What was removed: how many different values of each kind, and which arguments."""
        counts = [f"{what}: {len(found)}" for what, found in sorted(self._removed.items()) if found]
        return [*counts, f"arguments: {', '.join(sorted(self._arguments))}"] if self._arguments else counts

    def mark(self, value: Any, what: str, *, private: bool = False) -> str:
        """What stands for a value that is removed."""
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        self.note(value, what, private=private)
        return f"[removed {hashlib.blake2b(text.encode(), key=self._key, digest_size=3).hexdigest()}]"

    def note(self, value: Any, what: str, *, private: bool = False) -> None:
        """Counts a value that is left out, and remembers its texts, which must not stand in sentences.

        Args:
            value: plain data.
            what: its kind, in the plural.
            private: whether it must not be anywhere in a bundle.
        """
        texts = set(_texts(value)) or ({str(value)} if isinstance(value, int | float) else set())
        self._removed.setdefault(what, set()).update(texts)
        self.remember(value, private=private)

    def remember(self, value: Any, *, private: bool = False) -> None:
        """Its texts must not stand in sentences; if ``private``, nowhere in a bundle."""
        texts = set(_texts(value))
        telling = {text for text in texts if "/" in text or len(text) >= 2 * _SHORTEST}
        telling |= {user for text in texts for user in _HOME.findall(text) if len(user) >= _SHORTEST}
        self._known |= telling
        if private:
            self.private |= telling

    # -- texts ------------------------------------------------------------------------------------------

    def sentence(self, text: str) -> str:
        """A sentence of the recorder's, without what may name a place or quotes somebody."""
        found = _TELLING.sub(GONE, _QUOTED.sub(GONE, text))
        for known in sorted(self._known, key=len, reverse=True):
            found = found.replace(known, GONE)
        if found != text:
            self.note(text, "parts of notes")
        return found

    def word(self, value: Any, what: str) -> Any:
        """A text that is one word, or a number; else a mark."""
        if isinstance(value, str):
            return value if _WORD.fullmatch(value) else self.mark(value, what)
        return self.plain(value, what, texts=True)

    def plain(self, value: Any, what: str, *, texts: bool) -> Any:
        """Plain data in which numbers stay, and words if ``texts``."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, list | tuple):
            return [self.plain(part, what, texts=texts) for part in value]
        if isinstance(value, Mapping):
            return {
                name if _WORD.fullmatch(name := str(key)) else self.mark(name, what): self.plain(
                    part, what, texts=texts
                )
                for key, part in value.items()
            }
        if value == "" or (texts and isinstance(value, str) and _WORD.fullmatch(value)):
            return value
        return self.mark(value, what)

    # -- what a run says --------------------------------------------------------------------------------

    def engine(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What an engine says of itself; its name, which its user gave it, becomes that of its release."""
        versions = {
            str(name): version
            for name, version in _mapping(said.get("versions")).items()
            if isinstance(version, str) and _WORD.fullmatch(version) and _WORD.fullmatch(str(name))
        }
        found: dict[str, Any] = {"name": _name(said, versions), "versions": versions}
        self.note(said.get("name"), "names of engines")
        if said.get("family") in FAMILIES:
            found["family"] = said["family"]
        for name, value in said.items():
            if name in ("name", "family", "versions"):
                continue
            if name in _PARTS:
                found[name] = getattr(self, _PARTS[name])(_mapping(value))
            elif name == "device":
                fits = isinstance(value, str) and _DEVICE.fullmatch(value)
                found[name] = value if fits else self.mark(value, "the device's name")
            elif value is None or isinstance(value, bool | int | float):
                found[name] = value
            else:
                self.note(value, "facts of engines")
        return found

    def settings(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Settings as an engine resolved them."""
        return self._listed(said, _SETTINGS, "values of settings")

    def resolved(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """All other fields of an engine's configuration."""
        return self._listed(said, (), "values of settings")

    def model_config(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """A model's configuration, or what was laid over it."""
        return self._listed(said, _CONFIG, "values of the model's configuration")

    def given(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that somebody gave: those that a replay may take over."""
        found = {}
        for name, value in said.items():
            if setting_refusal(name, value) is None:
                found[name] = value
                continue
            self.remember(value)
            self._arguments.add(name if _WORD.fullmatch(name) else GONE)
            if name in NESTED and isinstance(value, Mapping):
                kept = {key: part for key, part in value.items() if setting_refusal(name, {key: part}) is None}
                found |= {name: kept} if kept else {}
        return found

    def operator(self, said: Mapping[str, Any], paths: Container[str]) -> dict[str, Any]:
        """What an operator was built with; ``paths`` are those of operators, most of which keep their own."""
        texts = (
            *_SETTINGS,
            *_CONFIG,
            *_CHOICES,
            *(name for name, value in said.items() if _is_path(value, paths)),
        )
        return self._listed(said, texts, "values of operators' configurations")

    def environment(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Environment variables: those that a replay may take over."""
        found = {}
        for name, value in said.items():
            if variable_refusal(name, value) is None:
                found[name] = value
            else:
                self.note(f"{name}={value}", "environment variables", private=True)
                self._known |= {text for text in _texts(value) if len(text) >= _SHORTEST}
        return found

    def _listed(self, said: Mapping[str, Any], texts: Iterable[str], what: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in said.items():
            known = _matches(name, texts) or setting_refusal(name, value) is None
            known |= isinstance(value, str) and _CHOICE.fullmatch(value) is not None and _matches(name, _CHOICES)
            if _WORD.fullmatch(name):
                found[name] = self.plain(value, what, texts=known)
            else:
                self.note(name, what)
        return found

    def model(self, path: Any, *, served: bool) -> str:
        """A model's name on a hub; a mark for a folder of somebody's.

        Args:
            path: as it was given.
            served: whether a command was given it, which may have taken it from a hub.
        """
        name, revision = hub_name(str(path), served=served)
        if name is None:
            return self.mark(str(path), "paths of models", private=True)
        told = name if revision is None else f"{name}@{revision}"
        if str(path) != told:
            self.note(str(path), "paths of models", private=True)
        return told

    def model_files(self, said: Mapping[str, Any]) -> dict[str, str]:
        """Digests of the files beside a model's tensors, of those with a usual name."""
        kept = {name: digest for name, digest in said.items() if name in _MODEL_FILES}
        self.note([name for name in said if name not in kept], "names of the model's files")
        return {name: str(self.word(digest, "digests")) for name, digest in kept.items()}

    # -- requests ---------------------------------------------------------------------------------------

    def sampling(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Sampling parameters: numbers, and texts where they stay."""
        found: dict[str, Any] = {}
        for name, value in said.items():
            if name == "lora" and isinstance(value, Mapping):
                found[name] = self._adapter(value)
            elif _is_numeric(value):
                found[name] = value
            elif name in (UNAPPLIED, WITHHELD):
                found[name] = self.plain(value, "sampling parameters", texts=True)
            elif self.texts and name in ("stop", "bad_words", "structured_outputs"):
                found[name] = value
            else:
                self.note(value, "texts of sampling parameters")
        return found

    def _adapter(self, said: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in said.items() if _is_numeric(value) or name == "digest"}
        name = self.mark(str(said.get("name")), "names of adapters")
        if "path" in said:
            self.note(str(said["path"]), "paths of adapters", private=True)
            kept["path"] = GONE
        return {**kept, "name": f"adapter-{name[-7:-1]}"}

    def prompt(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """A request of a workload."""
        text = said.get("prompt")
        if text is not None and not self.texts:
            self.note(text, "texts of prompts", private=True)
            text = None
        return {
            "prompt_token_ids": said["prompt_token_ids"], "prompt": text,
            "sampling": self.sampling(_mapping(said.get("sampling"))),
        }  # fmt: skip

    def result(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What an engine returned for a request."""
        for name, value in said.items():
            if name not in _RESULT:
                self.note(value, "texts of outputs")
        return {
            name: self.word(value, "reasons") if name == "finish_reason" else value
            for name, value in said.items()
            if name in _RESULT and (name == "finish_reason" or _is_numeric(value))
        }

    def time(self, value: Any) -> str | None:
        """When something was; None for what is no time."""
        return value if isinstance(value, str) and _TIME.fullmatch(value) else None

    def digest(self, value: Any) -> str | None:
        """A digest, in hexadecimal; None for anything else."""
        return value if isinstance(value, str) and _HEX.fullmatch(value) else None


_PARTS = {
    "settings": "settings", "resolved": "resolved", "model_config": "model_config", "arguments": "given",
    "hf_overrides": "model_config", "environment": "environment",
}  # fmt: skip


def hub_name(path: str, *, served: bool = False) -> tuple[str | None, str | None]:
    """The name that a model has on a hub, and its revision, as far as a path in a hub's cache says them."""
    if (found := _HUB.search(path)) is not None:
        return f"{found[1]}/{found[2]}", found[3]
    # Relative folders look the same, and are somebody's own.
    if served and _REPOSITORY.fullmatch(path) and not _exists(path):
        return path, None
    name, at, revision = path.partition("@")
    if at and _REPOSITORY.fullmatch(name) and _HEX.fullmatch(revision):
        return name, revision
    return None, None


def _exists(path: str) -> bool:
    with suppress(OSError, ValueError):
        return Path(path).exists() or Path(path).parent.exists()
    return True


def _name(said: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    package = family_of(said).package
    found = f"{package}-{versions[package]}" if package in versions else package
    return re.sub(r"[^A-Za-z0-9._-]", "-", found)[:64]


def _is_path(value: Any, paths: Container[str]) -> bool:
    """Whether a text is the path of an operator."""
    return isinstance(value, str) and value in paths


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_numeric(value: Any) -> bool:
    """Numbers, and lists of them and maps between them: nothing that is written in words."""
    if isinstance(value, list | tuple):
        return all(map(_is_numeric, value))
    if isinstance(value, Mapping):
        return all(re.fullmatch(r"-?\d+", str(key)) and _is_numeric(part) for key, part in value.items())
    return value is None or isinstance(value, bool | int | float)


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part)
            yield str(key)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _of_this_machine() -> Iterable[str]:
    """What names this machine and who uses it; what is short stands in words too, and is not looked for."""
    found = [str(Path.home()), os.environ.get("HOME", ""), socket.gethostname(), str(Path.cwd())]
    with suppress(KeyError, OSError, ImportError):
        found.append(getpass.getuser())
    return [text for text in found if len(text) >= _SHORTEST]
