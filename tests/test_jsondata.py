"""Values as JSON can hold them."""

from __future__ import annotations

import json
import math

import pytest

from tracereplay.jsondata import one_of, optional, plain, real


def test_numbers_that_json_has_no_word_for_survive_it() -> None:
    given = {"a": (1.5, math.inf), "b": [-math.inf, None, "text", 3, True]}
    written = json.loads(json.dumps(plain(given), allow_nan=False))
    assert written == {"a": [1.5, "inf"], "b": ["-inf", None, "text", 3, True]}
    assert [real(value) for value in written["a"]] == [1.5, math.inf]
    assert math.isnan(real(plain(math.nan)) or 0.0)


def test_what_is_not_there_is_not_read() -> None:
    assert (real(None), optional(int, None), optional(int, "3")) == (None, None, 3)


def test_a_word_that_is_not_known_is_named() -> None:
    assert one_of("match", {"match"}, "verdict") == "match"
    with pytest.raises(ValueError, match="the verdict 'perhaps'"):
        one_of("perhaps", {"match"}, "verdict")
