"""What a bisection says of a closure that does not hold."""

from __future__ import annotations

from tracereplay.bisector.words import why
from tracereplay.verdict import Closure
from tracereplay.verdict.bisection import Bisection

ENOUGH = Bisection("operators", positions=64)


def test_an_open_closure_without_a_reason_means_that_something_was_not_observed() -> None:
    assert why(Closure(False, "output 0 of a is not b"), ENOUGH) == [
        "With each operator's own error taken away, logits still differ from golden's (closure does not hold): "
        "output 0 of a is not b. Some computation was not observed."
    ]


def test_routing_flips_are_named_in_place_of_what_was_not_observed() -> None:
    (said,) = why(Closure(False, "output 0 of a is not b", flipped=("layers.0.experts",)), ENOUGH)
    assert said.endswith("sent rows to different experts than in golden (routing flips): layers.0.experts.")
    assert "not observed" not in said


def test_other_batches_are_said_to_break_a_closure() -> None:
    (said,) = why(Closure(False, "output 0 of a is not b", same_batches=False), ENOUGH)
    assert "composed their batches differently" in said
    assert "not observed" not in said
