"""Settings that another engine was given hold only where this one has them."""

from __future__ import annotations

import pytest

from tracereplay.engines.toy.driver import ToyDriver
from tracereplay.engines.toy.options import check_settings, known_of
from tracereplay.errors import UsageError


def test_an_inherited_setting_that_the_engine_does_not_have_is_left_out() -> None:
    given = {"rounding": "once", "block_size": 32, "of_another": 1}
    assert known_of(given, {"block_size", "rounding"}) == {"rounding": "once", "of_another": 1}
    with pytest.raises(UsageError, match="of_another"):
        check_settings(known_of(given, {"block_size"}))
    with pytest.raises(UsageError, match="block_size"):
        ToyDriver().start("", {"block_size": 32})
