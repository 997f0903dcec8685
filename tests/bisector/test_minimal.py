"""Delta debugging finds sets of which nothing can be left out, in a bounded number of questions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracereplay.bisector.minimal import OutOfBudget, minimise


class Asked:
    """Counts the questions about a set that is needed as a whole."""

    def __init__(self, needed: set[int], most: int = 1 << 30) -> None:
        self.needed, self.most, self.count = needed, most, 0

    def __call__(self, part: Sequence[int]) -> bool:
        if self.count >= self.most:
            raise OutOfBudget
        self.count += 1
        return self.needed <= set(part)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_what_is_needed_is_found_exactly(case: tuple[int, set[int]]) -> None:
    count, needed = case
    asked = Asked(needed)
    found = minimise(range(count), asked)
    assert set(found.members) == needed
    assert found.proven
    assert asked.count <= count**2 + 3 * count  # Zeller and Hildebrandt's bound


@given(st.integers(2, 9), st.sets(st.frozensets(st.integers(0, 8), min_size=1), min_size=1, max_size=12))
def test_no_member_of_the_result_can_be_left_out_whatever_restores(count: int, doing: set[frozenset[int]]) -> None:
    whole = frozenset(range(count))

    def restores(part: Sequence[int]) -> bool:
        return frozenset(part) in doing or frozenset(part) == whole

    members = minimise(range(count), restores).members
    assert restores(members)
    assert not any(restores([m for m in members if m != left]) for left in members if len(members) > 1)


def test_one_of_many_is_found_in_logarithmically_many_questions() -> None:
    asked = Asked({77})
    assert minimise(range(128), asked).members == (77,)
    assert asked.count <= 14


@pytest.mark.parametrize("most", [0, 1, 5])
def test_the_smallest_set_so_far_is_returned_when_the_budget_is_spent(most: int) -> None:
    found = minimise(range(16), Asked({3, 12}, most))
    assert not found.proven
    assert {3, 12} <= set(found.members)
