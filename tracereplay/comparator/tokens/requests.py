"""Whether two recordings had the same requests: prompts and sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracereplay.comparator.judging.settings import SAMPLING, effect_of
from tracereplay.comparator.tokens.generation import Generation
from tracereplay.sampling import LORA
from tracereplay.verdict import SettingDifference

__all__ = ["OtherPrompts", "compare_prompts", "compare_sampling"]

# What parameters that nobody gave are; None is the same as not given.
_DEFAULTS: Mapping[str, Any] = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "repetition_penalty": 1.0, "n": 1, "min_tokens": 0, "ignore_eos": False,
}  # fmt: skip
_OF_DRAWING = ("top_p", "top_k", "min_p", "seed")  # mean nothing at temperature 0


@dataclass(frozen=True, slots=True)
class OtherPrompts:
    """Golden's requests whose prompts differ in the candidate.

    Args:
        requests: how many differ, out of ``of``.
        request, position: the first of them, and where its token ids first differ; None if the candidate lacks it.
        same_text: both have the same text, so that it was tokenized differently.
        reordered: the candidate has the same prompts in another order.
    """

    requests: int
    of: int
    request: int
    position: int | None
    same_text: bool
    reordered: bool


def compare_prompts(golden: Generation, candidate: Generation) -> OtherPrompts | None:
    """Where the prompts differ; unknown ones are left out."""
    pairs = [
        (request, mine, candidate.prompts[request] if request < len(candidate.prompts) else None)
        for request, mine in enumerate(golden.prompts)
        if mine
    ]
    differing = [
        (request, mine, theirs) for request, mine, theirs in pairs if theirs is None or (theirs and mine != theirs)
    ]
    if not differing:
        return None
    request, mine, theirs = differing[0]
    texts = [g.texts[request] if request < len(g.texts) else None for g in (golden, candidate)]
    return OtherPrompts(
        requests=len(differing),
        of=len(pairs),
        request=request,
        position=None if theirs is None else _parting(mine, theirs),
        same_text=texts[0] is not None and texts[0] == texts[1],
        reordered=sorted(golden.prompts) == sorted(candidate.prompts),
    )


def _parting(mine: tuple[int, ...], theirs: tuple[int, ...]) -> int:
    shared = min(len(mine), len(theirs))
    return next((i for i in range(shared) if mine[i] != theirs[i]), shared)


def compare_sampling(golden: Generation, candidate: Generation) -> tuple[SettingDifference, ...]:
    """Sampling parameters that differ, with the values of the first request in which they do."""
    found: dict[str, SettingDifference] = {}
    for mine, theirs in zip(golden.sampling, candidate.sampling, strict=False):
        drawn = not (_value(mine, "temperature") == _value(theirs, "temperature") == 0)
        for name in dict.fromkeys([*mine, *theirs]):
            a, b = _value(mine, name), _value(theirs, name)
            if a != b and (drawn or name not in _OF_DRAWING):
                setting = f"{SAMPLING}.{name}"
                found.setdefault(setting, SettingDifference(setting, a, b, effect_of(setting)))
    return tuple(found.values())


def _value(sampling: Mapping[str, Any], name: str) -> Any:
    value = sampling.get(name)
    if name == "top_k" and value == -1:  # as older versions say that it is off
        value = 0
    if name == LORA and isinstance(value, Mapping):  # where it lies does not matter
        value = f"{value.get('name')} ({value.get('digest')})"
    return _DEFAULTS.get(name) if value is None else value
