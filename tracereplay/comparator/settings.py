"""In which settings the engines differ, and what each can change (settings.toml)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

from tracereplay.comparator.staleness import Versions
from tracereplay.trace.run import Run
from tracereplay.verdict import Effect, SettingDifference

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "WEIGHTS_UPDATE",
    "argument_of",
    "compare_settings",
    "compare_updates",
    "effect_of",
    "explains",
    "importance_of",
]

WEIGHTS_UPDATE = "weights_update"  # not a setting that anybody gave: it is read off the steps

_ORDER: Mapping[Effect, int] = {"semantic": 0, "numeric": 1, "unknown": 2, "none": 3}


@dataclass(frozen=True, slots=True)
class _Known:
    name: str
    effect: Effect
    touches: tuple[str, ...]
    drawing: bool = False  # matters only where tokens are drawn at random
    argument: str | None = None  # how it is passed, where that is not its name; empty: it cannot be


@cache
def _table() -> tuple[_Known, ...]:
    text = resources.files(__package__).joinpath("settings.toml").read_text(encoding="utf-8")
    entries = tomllib.loads(text)["setting"]
    return tuple(
        _Known(e["name"], e["effect"], tuple(e.get("touches", ())), e.get("drawing", False), e.get("argument"))
        for e in entries
    )


def _known(name: str) -> _Known:
    return next((k for k in _table() if fnmatchcase(name, k.name)), _Known(name, "unknown", ()))


def effect_of(name: str, *, drawn: bool = True) -> Effect:
    """What a difference in this setting can change; ``drawn`` is whether any token is drawn at random."""
    known = _known(name)
    return "none" if known.drawing and not drawn else known.effect


def argument_of(name: str) -> str | None:
    """The engine argument that sets it (``hf_overrides.head_dtype``: a key of one), None if there is none."""
    argument = _known(name).argument
    return name if argument is None else argument or None


def importance_of(name: str) -> int:
    """Place in the table, where what matters more comes first."""
    return next((i for i, known in enumerate(_table()) if fnmatchcase(name, known.name)), 1 << 30)


def explains(difference: SettingDifference, operator: str) -> bool:
    """Whether this setting means that operators of this class compute something else.

    A setting that only rounds otherwise explains no error beyond rounding.
    """
    known = _known(difference.name)
    return known.effect == "semantic" and any(fnmatchcase(operator, glob) for glob in known.touches)


def compare_settings(
    golden: Run, candidate: Run, *, drawn: bool = True,
    also: Sequence[SettingDifference] = (),
) -> tuple[SettingDifference, ...]:  # fmt: skip
    """What differs between two traces' runs, what can change meaning or numbers first.

    Args:
        golden, candidate: ``Trace.run``.
        drawn: whether the workload draws any token at random.
        also: what differs besides, found elsewhere.
    """
    mine, theirs = _flat(golden), _flat(candidate)
    names = dict.fromkeys([*mine, *theirs])
    found = [
        SettingDifference(name, mine.get(name), theirs.get(name), effect_of(name, drawn=drawn))
        for name in names
        if mine.get(name) != theirs.get(name)
    ]
    return tuple(sorted([*found, *also], key=lambda d: (_ORDER[d.effect], importance_of(d.name), d.name)))


def compare_updates(golden: Versions, candidate: Versions) -> tuple[SettingDifference, ...]:
    """Updates of weights under way as a setting, where rows had other weights or a context of others."""
    if golden.same_as(candidate):
        return ()
    values = golden.describe(), candidate.describe()
    return (SettingDifference(WEIGHTS_UPDATE, *values, effect_of(WEIGHTS_UPDATE)),)


def _flat(run: Run) -> dict[str, Any]:
    """Weights, versions, settings, device and environment under one name each."""
    flat: dict[str, Any] = {"weights": run.weights, "device": run.engine.get("device")}
    flat |= {f"versions.{k}": v for k, v in run.engine_facts("versions").items()}
    flat |= run.engine_facts("settings")
    flat |= {f"environment.{k}": v for k, v in run.engine_facts("environment").items()}
    return flat
