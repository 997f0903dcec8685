"""The arguments that a command gave to its engine: what its own front end made of a command line, or of Python.

A recorded server's workers see what the engine resolved, not what was asked for. The process that turns arguments
into a configuration notes them in its environment, which the engine's processes inherit.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from tracereplay.engines.variables import ARGUMENTS
from tracereplay.engines.vllm.guest.resolved import plain

__all__ = ["given_arguments", "watch_arguments"]

_MODEL = ("model", "tokenizer")  # the trace says which model it was
_SECRET = ("hf_token",)
_LONGEST = 4096  # characters of a value's text


def given_arguments() -> dict[str, Any]:
    """Engine arguments that were given and are not the defaults, by name; only those that are plain data."""
    try:
        found = json.loads(os.environ.get(ARGUMENTS, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def watch_arguments(module: ModuleType) -> None:
    """Notes the arguments of each engine that this process configures from now on.

    Args:
        module: ``vllm.engine.arg_utils``.
    """
    kind: Any = getattr(module, "EngineArgs", None)
    original = getattr(kind, "create_engine_config", None)
    if original is None or getattr(original, "_tracereplay", False):
        return

    @functools.wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Now: vLLM puts in what it resolves.
        os.environ[ARGUMENTS] = json.dumps(dict(_given(self)))
        return original(self, *args, **kwargs)

    create_engine_config._tracereplay = True  # type: ignore[attr-defined]
    kind.create_engine_config = create_engine_config


def _given(arguments: Any) -> Iterator[tuple[str, Any]]:
    for name, value in _changed(arguments):
        if name not in (*_MODEL, *_SECRET) and len(json.dumps(value)) <= _LONGEST:
            yield name, value


def _changed(arguments: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of each field that is not as its class makes it; a configuration within by its own fields."""
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name, None)
        default = _default(field)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dict(_changed(value)) if type(value) is type(default) else None
            default = {}
        known = plain(value)
        if known is not None and known != plain(default):
            yield field.name, known


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    try:
        return None if field.default_factory is dataclasses.MISSING else field.default_factory()
    except Exception:  # one that cannot be made alone
        return None
