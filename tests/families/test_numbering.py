"""Requests of a server by the ids that its engine gives them."""

from __future__ import annotations

from tracereplay.engines.vllm.guest.numbering import Numbering


def test_a_client_that_sends_an_id_twice_makes_two_requests() -> None:
    numbering = Numbering(None)
    ids = ["cmpl-mine-0-3f2a9c1b", "cmpl-mine-0-aaaaaaaa", "cmpl-mine-0-3f2a9c1b"]
    assert [numbering.number(i) for i in ids] == [(0, 0), (1, 0), (0, 0)]


def test_samples_of_one_request_stay_together() -> None:
    numbering = Numbering(None)
    assert [numbering.number(f"{child}_cmpl-7-0-3f2a9c1b") for child in (1, 0)] == [(0, 1), (0, 0)]
    assert numbering.number("cmpl-8_parallel_sample_2") == (1, 2)
    assert numbering.number("cmpl-8_parallel_sample_0") == (1, 0)


def test_ids_of_a_workload_are_counted() -> None:
    numbering = Numbering(5)
    assert numbering.number("1_7-3f2a9c1b") == (2, 1)


def test_ids_of_a_workload_in_another_order_keep_the_workloads_numbers() -> None:
    numbering = Numbering(5, order=(2, 0, 1))
    assert [numbering.number(i) for i in ("5-3f2a9c1b", "6", "1_7-3f2a9c1b")] == [(2, 0), (0, 0), (1, 1)]
