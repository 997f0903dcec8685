"""What a bias along the values' signs (a lean) means: a rounding convention, or a fault. Siblings decide.

A cast that truncates leans by half an ulp towards zero, at every operator where the same code runs; a fault leans
where it is. So each tensor is held against its siblings (`siblings`), and its lean's signature (`profiles`) read:

    a lean like its siblings', or one that has none    a rounding convention; a fault if it is a factor's
    a lean, and nearly all siblings have none          a fault
    four and more, and it stands apart from them       a fault, though it may lean by less than they do

*Why is a factor that all siblings share a fault?* No rounding convention multiplies; a class with a wrong constant
does.
*Why not judge two or three by their spread?* They have none to speak of. But one that leans by half a cast while
another does not lean at all needs no spread to be told from it.

A rounding convention may lean by more (`bias_sign_max_ulp`) than a fault needs to be one.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracereplay.comparator.numbers.profiles import CAST_ULP, Profile, pooled, profile_of, signature_of
from tracereplay.comparator.numbers.siblings import FEWEST, Standing, standing, standing_in
from tracereplay.comparator.numbers.tally import BIAS_ROWS, Tally
from tracereplay.verdict.measures import Siblings, Signature

__all__ = ["judge_leans"]

HALF_A_CAST = CAST_ULP / 2
STILL = 0.5  # times what any tensor may lean by: what leans no more does not lean
NEARLY_ALL = 0.75


def judge_leans(siblings: Sequence[Tally], dtype: str, sign_max: float) -> None:
    """Tells siblings how they stand, and gives those whose lean is a rounding convention the limit of one.

    Args:
        siblings: tensors of a pass in which every operator had golden inputs, so that their leans are their own.
        dtype: in which they are compared; float.
        sign_max: what a rounding convention may lean by, in ulp.
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
    found = [
        _stands(tally, own, [*profiles[:i], *profiles[i + 1 :]])
        for i, (tally, own) in enumerate(zip(tallies, profiles, strict=True))
    ]
    alike = [profile for profile, (_, apart) in zip(profiles, found, strict=True) if not apart]
    shared = signature_of(pooled(alike)) if alike else None
    return [
        Siblings(
            len(tallies), _signature(tally, profile, None if apart else shared), apart, stands.measure,
            stands.value, stands.median, stands.spread, stands.score,
        )
        for tally, profile, (stands, apart) in zip(tallies, profiles, found, strict=True)
    ]  # fmt: skip


def _stands(tally: Tally, own: Profile, others: Sequence[Profile]) -> tuple[Standing, bool]:
    """Where a tensor stands among at least three others, and whether that is apart from them."""
    still = sum(abs(other.bias_ulp.value) <= STILL * tally.bias_limit for other in others)
    if tally.sign_lean and still >= NEARLY_ALL * len(others):
        return standing_in("bias_ulp", own, others), True
    stands, apart = standing(own, others, tally.bias_limit)
    return stands, apart and _differs(tally)


def _among_few(tallies: Sequence[Tally], profiles: Sequence[Profile]) -> list[Siblings]:
    found = []
    for tally, profile in zip(tallies, profiles, strict=True):
        signature = _signature(tally, profile)
        others = zip(tallies, profiles, strict=True)
        alone = signature == "truncation" and any(_contradicts(*other, profile) for other in others)
        found.append(Siblings(len(tallies), signature, alone))
    return found


def _contradicts(other: Tally, its: Profile, leaning: Profile) -> bool:
    """Whether a sibling shows that the code does not lean by itself."""
    lean = its.bias_ulp.value
    return abs(lean) <= STILL * other.bias_limit and abs(leaning.bias_ulp.value - lean) >= HALF_A_CAST


def _differs(tally: Tally) -> bool:
    return tally.equal < tally.elements


def _signature(tally: Tally, profile: Profile, shared: Signature | None = None) -> Signature | None:
    """Of a lean that is real and more than any tensor may show; ``shared`` where it is one with its siblings'."""
    if not tally.sign_lean:
        return None
    return shared or signature_of(profile)
