"""All that an engine made of its arguments: the fields of its configuration, as plain data.

Which of them matter is for `settings.toml` to say; one that it does not know is listed where it differs.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["plain", "resolved"]

# Parts of the configuration that other facts of a trace state, or that hold what only this process knows.
_NOT = re.compile(
    r"instance_id|.*(_|^)(port|ip|host|hash|path|dir|folder|token|uuid|id|addr|address|time|rank|world_size)(_.*)?|"
    r"speculative_config|model|tokenizer|served_model_name|.*revision|hf_.*|additional_config|static_.*|compilation_time|"
    r"enabled_custom_ops|disabled_custom_ops|traced_files|.*_context|local_.*|dp_.*|trust_remote_code|"
    r"num_(gpu|cpu)_blocks|compile_ranges.*|kv_cache_max_concurrency|.*observability.*|original_.*"
)
_LONGEST = 400  # characters of a value's text
_DEPTH = 3


def resolved(config: Any, but: frozenset[str]) -> dict[str, Any]:
    """Fields of a ``VllmConfig`` by name; by part and name where parts disagree on it.

    Args:
        config: the engine's ``VllmConfig``.
        but: paths of fields that are stated elsewhere (``model_config.dtype``).
    """
    found: dict[str, dict[str, Any]] = {}
    for part, name, value in _fields(config, "", _DEPTH):
        if f"{part}.{name}" not in but:
            found.setdefault(name, {})[part] = value
    plain: dict[str, Any] = {}
    for name, by_part in sorted(found.items()):
        values = list(by_part.values())
        if all(value == values[0] for value in values):
            plain[name] = values[0]
        else:
            plain |= {f"{part}.{name}": value for part, value in sorted(by_part.items())}
    return plain


def _fields(config: Any, part: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """(part, name, value) of each field that is plain, also in the configurations that it holds."""
    for name in _names(config):
        if _NOT.fullmatch(name):
            continue
        value = getattr(config, name, None)
        if _names(value):
            if depth > 1:
                yield from _fields(value, f"{part}.{name}".strip("."), depth - 1)
        elif (known := plain(value)) is not None and len(str(known)) <= _LONGEST:
            yield part, name, known


def _names(config: Any) -> list[str]:
    """The public fields of a configuration, in older releases an ordinary class; none of anything else."""
    kind = type(config)
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(config)]
    elif kind.__module__.partition(".")[0] == "vllm" and kind.__name__.endswith("Config"):
        names = list(vars(config))
    else:
        return []
    return [name for name in names if name[0] != "_"]


def plain(value: Any) -> Any:
    """Plain data; None for what is not: an object says of itself where it lies in memory."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (set, frozenset)):
        value = sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        parts = [plain(part) for part in value]
        return None if None in parts else parts
    if isinstance(value, Mapping):
        items = {str(key): plain(part) for key, part in value.items()}
        return None if None in items.values() else items
    return None
