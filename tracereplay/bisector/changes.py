"""The settings in which a candidate differs from golden, as changes that can be made one by one.

golden's arguments and what its engine reported      ─┐
the candidate's arguments and what its engine reported ─┴─▶ Change ...  ─▶ Configured: arguments and variables
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tracereplay.comparator.judging.settings import argument_of, effect_of, importance_of
from tracereplay.gate import applied_settings, setting_refusal, variable_refusal
from tracereplay.launch import Configured, Launchable
from tracereplay.trace import Trace
from tracereplay.verdict.bisection import Skipped

__all__ = ["Change", "Told", "configured", "differences"]

ABSENT = object()  # golden had no such argument or variable
VARIABLE = "environment."
_NO_ARGUMENT = "no argument sets it"


@dataclass(frozen=True, slots=True)
class Change:
    """Gives a setting golden's value.

    Args:
        name: as settings are named in a verdict; variables begin with ``environment.``.
        value: golden's; `ABSENT` leaves the argument or variable out.
        given: whether it was given explicitly, in a command or for an engine; otherwise it is a resolved default.
    """

    name: str
    value: Any
    given: bool

    @property
    def shown(self) -> Any:
        """The value for people and JSON."""
        return None if self.value is ABSENT else self.value

    @property
    def argument(self) -> str:
        """The change as a command-line argument."""
        if self.name.startswith(VARIABLE):
            variable = self.name.removeprefix(VARIABLE)
            return f"env -u {variable}" if self.value is ABSENT else f"env {variable}={self.value}"
        path = argument_of(self.name) or self.name
        if self.value is ABSENT:
            return f"no --set {path.partition('.')[0]}"
        head, _, key = path.partition(".")
        return f"--set {head}={json.dumps({key: self.value} if key else self.value, separators=(',', ':'))}"


@dataclass(frozen=True, slots=True)
class Told:
    """An engine's settings, as reported by it or by a trace of it.

    Args:
        arguments: those given explicitly.
        resolved: the resulting values, defaults included.
        environment: variables.
        trusted: whether reported by the user's own engine, not by a trace, which may be a stranger's.
    """

    arguments: Mapping[str, Any]
    resolved: Mapping[str, Any]
    environment: Mapping[str, Any]
    trusted: bool = False

    @classmethod
    def by_trace(cls, trace: Trace) -> Told:
        """The settings in a trace, without arguments that it may not ask for."""
        facts = trace.run.engine_facts
        return cls(applied_settings(trace), facts("settings"), facts("environment"))

    @classmethod
    def by_engine(cls, arguments: Mapping[str, Any], info: Mapping[str, Any]) -> Told:
        """The settings of an engine of the user's."""
        return cls(arguments, info.get("settings") or {}, info.get("environment") or {}, trusted=True)

    def refusal(self, change: Change) -> str | None:
        """Why this value is not used; None if it may be."""
        if self.trusted or change.value is ABSENT:
            return None
        if change.name.startswith(VARIABLE):
            return variable_refusal(change.name.removeprefix(VARIABLE), change.value)
        head, _, key = (argument_of(change.name) or change.name).partition(".")
        return setting_refusal(head, {key: change.value} if key else change.value)


def differences(
    golden: Told, theirs: Told, engine: Launchable, arguments: Mapping[str, Any]
) -> tuple[list[Change], list[Skipped]]:
    """Settings that can be changed to golden's, explicit ones first, then by importance; and those that cannot.

    Args:
        golden: the settings in the golden trace, or of the engine to compare with.
        theirs: the candidate's.
        engine: the candidate, for its variables.
        arguments: all of the candidate's engine arguments.
    """
    changes: dict[str, Change] = {}
    skipped: list[Skipped] = []
    mine = golden.arguments
    resolved = golden.resolved, theirs.resolved
    for name in dict.fromkeys([*arguments, *mine]):
        wanted = mine.get(name, resolved[0].get(name, ABSENT))
        if _matters(name) and arguments.get(name, resolved[1].get(name, ABSENT)) != wanted:
            changes[name] = Change(name, wanted, True)
    for name in dict.fromkeys([*resolved[0], *resolved[1]]):
        wanted, now = (settings.get(name, ABSENT) for settings in resolved)
        if wanted == now or name in changes or not _matters(name):
            continue
        if argument_of(name) is None:
            skipped.append(Skipped(name, _NO_ARGUMENT))
        elif wanted is not ABSENT:
            changes[name] = Change(name, wanted, False)
    _add_variables(changes, skipped, golden, theirs, engine)
    for name, change in list(changes.items()):
        if (why := golden.refusal(change)) is not None:
            skipped.append(Skipped(name, f"golden's value is not taken from a trace: it {why}"))
            del changes[name]
    ordered = sorted(changes.values(), key=lambda change: (not change.given, importance_of(change.name)))
    return ordered, skipped


def _add_variables(
    changes: dict[str, Change], skipped: list[Skipped], golden: Told, theirs: Told, engine: Launchable,
) -> None:  # fmt: skip
    mine, other = golden.environment, theirs.environment
    for variable in dict.fromkeys([*mine, *other]):
        name = VARIABLE + variable
        if mine.get(variable) == other.get(variable) or not _matters(name) or variable == "LD_PRELOAD":
            continue
        if variable in os.environ:
            skipped.append(Skipped(name, "it is set in the shell, which takes precedence"))
        elif variable in mine or variable in engine.env:
            changes[name] = Change(name, mine.get(variable, ABSENT), variable in engine.env)
        else:
            skipped.append(Skipped(name, "the engine sets it itself"))


def _matters(name: str) -> bool:
    return effect_of(name) != "none"


def configured(engine: Launchable, arguments: Mapping[str, Any], changes: Iterable[Change]) -> Configured:
    """The engine with ``changes`` made."""
    settings, env = dict(arguments), dict(engine.env)
    for change in changes:
        if change.name.startswith(VARIABLE):
            _set(env, change.name.removeprefix(VARIABLE), change.value)
            continue
        head, _, key = (argument_of(change.name) or change.name).partition(".")
        if key:
            inner = settings.get(head)
            settings[head] = {**(inner if isinstance(inner, dict) else {}), key: change.value}
        else:
            _set(settings, head, change.value)
    return Configured(engine.name, engine.python, env, settings, engine.family)


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    if value is ABSENT:
        values.pop(name, None)
    else:
        values[name] = value
