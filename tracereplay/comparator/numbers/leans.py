"""What a bias along the values' signs (a lean) means: a way of rounding, or a fault. Siblings decide.

A cast that truncates leans by half an ulp towards zero, at every operator where the same code runs; a fault leans
where it is. So each tensor is held against its siblings (`siblings`), and its lean's signature (`profiles`) read:

    siblings       its lean is like theirs                      it stands apart
    4 and more     a way of rounding; a fault if a factor's     a fault
    fewer          a way of rounding; a fault if a factor's     a fault if it truncates and another does not at all

*Why is a factor that all siblings share a fault?* No way of rounding multiplies; a wrong constant in a class does.
*Why not judge two or three by their spread?* They have none to speak of. One that leans by half a cast or more
while another does not lean at all needs no spread to be told from it.

A way of rounding may lean by more (`bias_sign_max_ulp`) than a fault needs to be one.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracereplay.comparator.numbers.metrics import BIAS_ROWS, Tally
from tracereplay.comparator.numbers.profiles import CAST_ULP, Profile, pooled, profile_of, signature_of
from tracereplay.comparator.numbers.siblings import FEWEST, standing
from tracereplay.verdict.measures import Siblings, Signature

__all__ = ["judge_leans"]

HALF_A_CAST = CAST_ULP / 2


def judge_leans(siblings: Sequence[Tally], dtype: str, sign_max: float) -> None:
    """Tells siblings how they stand, and gives those whose lean is a way of rounding the limit of one.

    Args:
        siblings: tensors of a pass in which every operator had golden inputs, so that their leans are their own.
        dtype: in which they are compared; float.
        sign_max: what a way of rounding may lean by, in ulp.
    """
    known = [tally for tally in siblings if tally.rows >= BIAS_ROWS]
    if any(map(_differs, known)):
        _judge(known, [profile_of(tally, dtype) for tally in known], sign_max)


def _judge(tallies: Sequence[Tally], profiles: Sequence[Profile], sign_max: float) -> None:
    judge = _among_many if len(tallies) >= FEWEST else _among_few
    for tally, found in zip(tallies, judge(tallies, profiles), strict=True):
        tally.siblings = found if _differs(tally) else None
        if found.signature == "truncation" and not found.apart:
            tally.sign_limit = max(tally.bias_limit, sign_max)


def _among_many(tallies: Sequence[Tally], profiles: Sequence[Profile]) -> list[Siblings]:
    found = [standing(own, [*profiles[:i], *profiles[i + 1 :]]) for i, own in enumerate(profiles)]
    apart = [
        _differs(tally) and stands.is_apart(tally.bias_limit) for stands, tally in zip(found, tallies, strict=True)
    ]
    alike = [i for i in range(len(tallies)) if not apart[i]]
    shared = signature_of(pooled([profiles[i] for i in alike])) if alike else None
    return [
        Siblings(
            len(tallies), _signature(tally, profile, None if apart[i] else shared), apart[i], stands.measure,
            stands.value, stands.median, stands.spread, stands.score,
        )
        for i, (tally, profile, stands) in enumerate(zip(tallies, profiles, found, strict=True))
    ]  # fmt: skip


def _among_few(tallies: Sequence[Tally], profiles: Sequence[Profile]) -> list[Siblings]:
    found = []
    for tally, profile in zip(tallies, profiles, strict=True):
        signature = _signature(tally, profile)
        others = zip(tallies, profiles, strict=True)
        alone = signature is not None and any(_contradicts(*other, profile) for other in others)
        found.append(Siblings(len(tallies), signature, alone))
    return found


def _differs(tally: Tally) -> bool:
    return tally.equal < tally.elements


def _signature(tally: Tally, profile: Profile, shared: Signature | None = None) -> Signature | None:
    """Of a lean that is real and more than any tensor may show; ``shared`` where it is one with its siblings'."""
    if not tally.sign_lean:
        return None
    return shared or signature_of(profile)


def _contradicts(other: Tally, its: Profile, leaning: Profile) -> bool:
    """Whether a sibling shows that the code does not lean by itself."""
    lean = its.bias_ulp.value
    return abs(lean) <= other.bias_limit and abs(leaning.bias_ulp.value - lean) >= HALF_A_CAST
