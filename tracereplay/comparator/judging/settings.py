"""Settings in which the engines differ, and what each can change (tables of the families, in TOML)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from tracereplay.comparator.judging.staleness import Versions
from tracereplay.engines.known import FAMILIES
from tracereplay.trace.run import Run
from tracereplay.verdict import Effect, SettingDifference

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "SAMPLING",
    "WEIGHTS_UPDATE",
    "argument_of",
    "compare_settings",
    "compare_updates",
    "effect_of",
    "explains",
    "importance_of",
    "touched_by",
]

WEIGHTS_UPDATE = "weights_update"  # not a setting that anybody gave: it is read off the steps
SAMPLING = "sampling"  # sampling.temperature and so on: parameters of requests

_ORDER: Mapping[Effect, int] = {"semantic": 0, "numeric": 1, "unknown": 2, "none": 3}


_MODEL_CONFIG = "model_config"
_RESOLVED = "resolved"  # all fields of an engine's configuration that are not among its settings
_OVERRIDES = "hf_overrides"  # laid over the model's configuration, and known by its keys

# One value under several names.
_ALIKE = ({"fp8", "fp8_e4m3"},)


@dataclass(frozen=True, slots=True)
class _Known:
    """An entry of the table, whose keys are explained there."""

    name: str
    effect: Effect
    touches: tuple[str, ...] = ()
    drawing: bool = False  # matters only where tokens are drawn at random
    argument: str | None = None  # how it is passed, where that is not its name; empty: it cannot be
    outputs: tuple[int, ...] | None = None
    beyond: bool = False
    absent: Effect | None = None
    given: bool = False
    kernels: tuple[str, ...] = ()
    only_if: tuple[str, ...] = ()


@cache
def _table() -> tuple[_Known, ...]:
    """The settings tables of all families; a name means the same in all of them."""
    entries = (entry for family in FAMILIES.values() for entry in tomllib.loads(family.effects)["setting"])
    return tuple(map(_entry, entries))


def _entry(entry: Mapping[str, Any]) -> _Known:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    return _Known(**values)


def _known(name: str) -> _Known:
    if name.startswith(f"{_OVERRIDES}."):
        name = f"{_MODEL_CONFIG}.{name.removeprefix(f'{_OVERRIDES}.')}"
    return next((k for k in _table() if fnmatchcase(name, k.name)), _Known(name, "unknown"))


def effect_of(name: str, *, drawn: bool = True) -> Effect:
    """What a difference in this setting can change; ``drawn`` is whether any token is drawn at random."""
    known = _known(name)
    return "none" if known.drawing and not drawn else known.effect


def argument_of(name: str) -> str | None:
    """The engine argument that sets it (``hf_overrides.head_dtype``: a key of one), None if there is none."""
    argument = _known(name).argument
    return name if argument is None else argument or None


def touched_by(name: str) -> tuple[str, ...]:
    """Roles of the operators whose results it changes; ``*``: all. Empty: no certain ones."""
    return _known(name).touches


def importance_of(name: str) -> int:
    """Place in the table, where what matters more comes first."""
    return next((i for i, known in enumerate(_table()) if fnmatchcase(name, known.name)), 1 << 30)


def explains(difference: SettingDifference, role: str, output: int | None = None, *, edge: bool = False) -> bool:
    """Whether this setting means that operators of this role compute something different.

    A setting that only affects rounding explains no error beyond rounding. What lies between operators is changed
    only by a setting that changes everything.

    Args:
        difference: the setting.
        role: of the operator.
        output: which of its outputs differs; None: any.
        edge: whether what arrives at it differs, and not what it gives.
    """
    known = _known(difference.name)
    if difference.effect != "semantic" and not (known.beyond and difference.effect == known.effect):
        return False
    if edge:
        return "*" in known.touches
    if output is not None and known.outputs is not None and output not in known.outputs:
        return False
    return role in known.touches or "*" in known.touches


def compare_settings(
    golden: Run, candidate: Run, *, drawn: bool = True,
    also: Sequence[SettingDifference] = (),
) -> tuple[SettingDifference, ...]:  # fmt: skip
    """Settings in which two runs differ, those that can change meaning or numbers first.

    Args:
        golden, candidate: ``Trace.run``.
        drawn: whether the workload draws any token at random.
        also: further differences, found elsewhere.
    """
    mine, theirs = _flat(golden, candidate), _flat(candidate, golden)
    mine, theirs = _with_resolved(mine, golden, candidate), _with_resolved(theirs, candidate, golden)
    if not (_has_config(mine) and _has_config(theirs)):  # a recording of before models were described
        mine, theirs = _without_config(mine), _without_config(theirs)
    found = [
        SettingDifference(name, mine.get(name), theirs.get(name), _effect(name, mine, theirs, drawn=drawn))
        for name in dict.fromkeys([*mine, *theirs])
        if _differ(name, mine, theirs)
    ]
    return tuple(sorted([*found, *also], key=lambda d: (_ORDER[d.effect], importance_of(d.name), d.name)))


def compare_updates(golden: Versions, candidate: Versions) -> tuple[SettingDifference, ...]:
    """Weight updates during generation as a setting, if rows had different weights or a context of them."""
    if golden.same_as(candidate):
        return ()
    values = golden.describe(), candidate.describe()
    return (SettingDifference(WEIGHTS_UPDATE, *values, effect_of(WEIGHTS_UPDATE)),)


def _asked(run: Run) -> Mapping[str, Any]:
    return {} if run.requested is None else run.requested.compared()


def _given(run: Run, names: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments among ``names`` that a command gave; of one that is a configuration, the same fields."""
    given = run.engine_facts("arguments")
    found = {name: given[name] for name in names if name in given}
    for name, value in names.items():
        if isinstance(value, Mapping) and isinstance(found.get(name), Mapping):
            found[name] = {key: found[name].get(key) for key in value}
    return found


def _flat(run: Run, other: Run) -> dict[str, Any]:
    """Weights, versions, settings, the model's configuration, device and environment under one name each.

    What ``other`` was asked for, a server was perhaps given: its arguments are not in its workload.
    """
    asked = {**_given(run, _asked(other)), **_asked(run)}
    resolved = run.engine_facts(_RESOLVED)  # where it is known, an argument that is not in it would go unseen
    unseen = asked.keys() - resolved.keys() - run.engine_facts("settings").keys() if resolved else set()
    flat: dict[str, Any] = {k: v for k, v in asked.items() if _known(k).given or k in unseen}
    flat |= {"weights": run.weights, "device": run.engine.get("device")}
    flat |= {f"versions.{k}": v for k, v in run.engine_facts("versions").items()}
    flat |= run.engine_facts("settings")
    flat |= {f"{_MODEL_CONFIG}.{k}": v for k, v in run.engine_facts(_MODEL_CONFIG).items()}
    given = flat.pop(_OVERRIDES, None)
    overrides = run.engine.get(_OVERRIDES) or given
    if overrides and not isinstance(overrides, Mapping):  # a function, by its name
        flat[_OVERRIDES] = overrides
    elif overrides:
        flat |= {f"{_OVERRIDES}.{k}": v for k, v in overrides.items()}
    flat |= {f"environment.{k}": v for k, v in run.engine_facts("environment").items()}
    return flat


def _with_resolved(flat: Mapping[str, Any], run: Run, other: Run) -> dict[str, Any]:
    """With the fields of the resolved configuration that both runs have; releases have different ones."""
    shared = run.engine_facts(_RESOLVED).keys() & other.engine_facts(_RESOLVED).keys()
    return {**{name: run.engine_facts(_RESOLVED)[name] for name in shared}, **flat}


def _has_config(flat: Mapping[str, Any]) -> bool:
    return any(name.startswith(f"{_MODEL_CONFIG}.") for name in flat)


def _without_config(flat: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat.items() if not name.startswith(f"{_MODEL_CONFIG}.")}


def _differ(name: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether the values differ, and not only their spelling."""
    a, b = _meant(name, mine), _meant(name, theirs)
    alike = isinstance(a, str) and isinstance(b, str) and _alike(a.lower(), b.lower())
    return mine.get(name) != theirs.get(name) and a != b and not alike


def _alike(a: str, b: str) -> bool:
    return a == b or any({a, b} <= names for names in _ALIKE)


def _meant(name: str, flat: Mapping[str, Any]) -> Any:
    """The value, with ``auto`` resolved to that of another setting."""
    value = flat.get(name)
    return flat.get("dtype", value) if (name, value) == ("kv_cache_dtype", "auto") else value


def _effect(name: str, mine: Mapping[str, Any], theirs: Mapping[str, Any], *, drawn: bool) -> Effect:
    """What this difference can change, which depends on the values, and on the model."""
    known = _known(name)
    values = mine.get(name), theirs.get(name)
    if known.absent is not None and None in values:
        return known.absent
    if known.kernels and len({_format(value, known.kernels) for value in values}) == 1:
        return "numeric"
    if known.only_if and _has_config(theirs) and not any(_stated(theirs, path) for path in known.only_if):
        return "numeric"
    return effect_of(name, drawn=drawn)


def _format(value: Any, kernels: Sequence[str]) -> str:
    return next((str(value).removesuffix(end) for end in kernels if str(value).endswith(end)), str(value))


def _stated(flat: Mapping[str, Any], path: str) -> bool:
    """Whether the model's configuration has a value at ``path``, ``a.b`` being the key b of a."""
    first, *rest = path.split(".")
    value = flat.get(f"{_MODEL_CONFIG}.{first}")
    for key in rest:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value is not None
