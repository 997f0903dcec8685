"""Fields of a request's body that a recording was asked to keep (``--keep-fields user``); none otherwise.

The body is known where the HTTP server answers it, and the engine never sees these fields. A context variable
carries them to where the engine is asked.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import AsyncGenerator, Mapping
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from tracereplay.engines.variables import OPTIONS
from tracereplay.trace.requests import bounded

__all__ = ["SERVING", "kept_fields", "watch_serving"]

# Modules with what answers completions and chat: of this release of vLLM, and of 0.8.5.
SERVING = (
    "vllm.entrypoints.openai.completion.serving", "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.entrypoints.openai.serving_completion", "vllm.entrypoints.openai.serving_chat",
)  # fmt: skip
_CLASSES = {"OpenAIServingCompletion": "create_completion", "OpenAIServingChat": "create_chat_completion"}
_kept: ContextVar[Mapping[str, str]] = ContextVar("tracereplay_fields")


def kept_fields() -> Mapping[str, str]:
    """Those of the request that is being taken."""
    return _kept.get({})


@functools.cache
def _wanted() -> tuple[str, ...]:
    try:
        return tuple(json.loads(os.environ.get(OPTIONS, "{}")).get("keep_fields", ()))
    except (ValueError, TypeError):
        return ()


def watch_serving(module: ModuleType) -> None:
    """Keeps the wanted fields of each body that this module's class answers from now on."""
    if not _wanted():
        return
    for name, method in _CLASSES.items():
        kind: Any = getattr(module, name, None)
        original = getattr(kind, method, None)
        if original is not None and inspect.iscoroutinefunction(original):
            setattr(kind, method, _keeping(original))


def _keeping(original: Any) -> Any:
    @functools.wraps(original)
    async def answer(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        found = {}
        for name in _wanted():
            value = getattr(request, name, None)
            if value is not None:
                found[name] = bounded(value if isinstance(value, str) else json.dumps(value, default=str))
        _kept.set(found)
        result = await original(self, request, *args, **kwargs)
        return _streaming(result, found) if isinstance(result, AsyncGenerator) else result

    return answer


async def _streaming(result: AsyncGenerator[Any, None], fields: Mapping[str, str]) -> AsyncGenerator[Any, None]:
    """A streamed answer, which is made in another task than the one that began it."""
    _kept.set(fields)
    try:
        async for piece in result:
            yield piece
    finally:
        await result.aclose()
