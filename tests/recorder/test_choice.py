"""Which requests are chosen, by what users write and by what workers are told."""

from __future__ import annotations

from typing import Any

import pytest

from tracereplay.errors import UsageError
from tracereplay.recorder.choosing import Choice, positions_of, rate_of
from tracereplay.recorder.options import Options


def test_everything_is_chosen_unless_it_is_said_otherwise() -> None:
    assert Choice().takes(["cmpl-1"])
    assert Choice(tokens=(0, 4), every=3).takes(["cmpl-1"], "skip")
    assert not Choice(marked=True).takes(["cmpl-1"])


def test_a_request_is_chosen_by_its_mark_its_id_or_its_hash() -> None:
    choice = Choice(requests=("cmpl-a*", "b?"))
    assert choice.takes(["cmpl-abc", "cmpl-abc-0", "abc"])
    assert choice.takes(["cmpl-xyz", "cmpl-xyz-0", "b1"])
    assert not choice.takes(["cmpl-xyz", "cmpl-xyz-0", "xyz"])
    assert choice.takes(["cmpl-xyz"], "record")
    assert not choice.takes(["cmpl-abc"], "skip")
    assert not choice.takes(["cmpl-xyz"], ["record"])


def test_a_sample_has_its_share_and_is_the_same_everywhere() -> None:
    names = [f"cmpl-{number}" for number in range(20_000)]
    chosen = {name for name in names if Choice(sample=(1, 50)).takes([name])}
    assert 300 < len(chosen) < 500
    assert chosen == {name for name in names if Choice(sample=(1, 50)).takes([name, "another name"])}
    assert chosen <= {name for name in names if Choice(sample=(1, 10)).takes([name])}
    assert all(Choice(sample=(1, 1)).takes([name]) for name in names)
    assert "cmpl-20" in chosen  # and in every release: xxh3-64 of the id, as a share of 2^64
    assert "cmpl-21" not in chosen


@pytest.mark.parametrize(
    ("text", "rate"), [("1/1000", (1, 1000)), ("0.25", (1, 4)), ("1%", (1, 100)), ("1", (1, 1)), ("2/4", (1, 2))]
)
def test_rates(text: str, rate: tuple[int, int]) -> None:
    assert rate_of(text) == rate


@pytest.mark.parametrize("text", ["0", "2", "1/0", "abc", "", "-1/3", "nan", "inf", "101%", "1/2/3", "1e-30"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(UsageError, match="is no share of requests"):
        rate_of(text)


@pytest.mark.parametrize(
    ("text", "positions"), [("0:64", (0, 64)), (":64", (0, 64)), ("64:", (64, None)), (":", (0, None))]
)
def test_positions(text: str, positions: tuple[int, int | None]) -> None:
    assert positions_of(text) == positions


@pytest.mark.parametrize("text", ["", "5", "5:5", "6:5", "-1:3", "a:b", "0:1:2", "0:99999999999"])
def test_what_is_no_range_of_positions(text: str) -> None:
    with pytest.raises(UsageError, match="is no range of positions"):
        positions_of(text)


@pytest.mark.parametrize(
    "choice",
    [Choice(), Choice((1, 3), ("a", "b"), True, (3, None), 7), Choice(tokens=(0, 5))],
)
def test_workers_are_told_the_same(choice: Choice) -> None:
    options = Options(choice=choice)
    assert Options.from_dict(options.as_dict()) == options


@pytest.mark.parametrize(
    "data",
    [
        {"sample": [0, 5]}, {"sample": [2, 1]}, {"sample": [1]}, {"sample": 0.5}, {"requests": "a"}, {"every": 0},
        {"tokens": [3, 3]}, {"tokens": [-1, 3]}, {"marked": 1}, {"other": 1},
    ],
)  # fmt: skip
def test_what_a_worker_refuses(data: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options.from_dict({"choice": data})


def test_a_reader_is_told_what_is_left_out() -> None:
    choice = Choice((1, 1000), ("a*", "b*"), False, (0, 64), 10)
    assert Options(sides=("out",), choice=choice).told() == [
        "Of operators, only outputs of sites like * were recorded.",
        "Only requests are in this trace that asked for it or have an id like a* or b* or are in a sample of "
        "1/1000 by their id.",
        "Of operators, only positions 0 to 63 of each sequence were recorded.",
        "Of operators, only one step in 10 was recorded.",
    ]
    assert Options().told() == []
