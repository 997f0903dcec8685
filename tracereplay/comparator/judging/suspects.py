"""Which of the settings that differ can explain what was seen: those first, and what a release brings last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from tracereplay.comparator.judging.settings import explains, touched_by
from tracereplay.engines.known import FAMILIES
from tracereplay.verdict import SettingDifference

__all__ = ["Suspect", "Weight", "ranked"]

# What somebody installed; most other differences between two releases are their defaults.
_RELEASE = {
    *(f"versions.{family.package}" for family in FAMILIES.values()),
    "versions.torch", "device", "engine_generation", "model_runner",
}  # fmt: skip


class Weight(IntEnum):
    """How much a setting can explain; less is more."""

    MEANS = 0  # the operators that differ compute something else under it
    TOUCHES = 1  # it is known to change how these operators round
    ANYWHERE = 2  # it may change rounding anywhere
    UNKNOWN = 3
    RELEASE = 4  # another version, which may change anything
    ELSEWHERE = 5  # it changes meaning or rounding, but of operators that do not differ
    KNOCK_ON = 6  # another package, or a variable, or what may be another release's default
    NOTHING = 7


@dataclass(frozen=True, slots=True)
class Suspect:
    """A setting that differs, and how much it can explain.

    Args:
        difference: the setting.
        weight: see `Weight`.
        touches: classes of the operators that differ and that it affects; empty: it affects no certain ones.
    """

    difference: SettingDifference
    weight: Weight
    touches: tuple[str, ...] = ()


def ranked(
    differences: Sequence[SettingDifference], differing: Mapping[str, str], *, begins: str | None = None
) -> list[Suspect]:
    """All settings that differ, those first that can explain the most.

    Args:
        differences: the settings.
        differing: classes of the operators that differ, with their roles.
        begins: the role of the operator that is out of tolerance; None: none is.
    """
    released = any(d.name in _RELEASE for d in differences)
    found = [_suspect(d, differing, begins, released) for d in differences]
    return sorted(found, key=lambda suspect: (suspect.weight, -len(suspect.touches)))


def _suspect(
    difference: SettingDifference, differing: Mapping[str, str], begins: str | None, released: bool
) -> Suspect:
    roles = touched_by(difference.name)
    touches = tuple(kind for kind, role in differing.items() if role in roles or "*" in roles)
    return Suspect(difference, _weight(difference, touches, bool(roles), begins, released), touches)


def _weight(
    difference: SettingDifference, touches: Sequence[str], specific: bool, begins: str | None, released: bool
) -> Weight:
    name = difference.name
    if difference.effect == "none":
        return Weight.NOTHING
    if begins is not None and explains(difference, begins):
        return Weight.MEANS
    if name in _RELEASE:
        return Weight.RELEASE
    if difference.effect == "unknown":
        default = released and None in (difference.golden, difference.candidate)  # another release has it or not
        return Weight.KNOCK_ON if default or name.startswith("environment.") else Weight.UNKNOWN
    if touches:
        return Weight.MEANS if difference.effect == "semantic" else Weight.TOUCHES
    if specific or difference.effect == "semantic":
        return Weight.ELSEWHERE
    if released or name.startswith(("versions.", "environment.")):
        return Weight.KNOCK_ON
    return Weight.ANYWHERE
