"""Settings that another engine was given hold only where this one has them."""

from __future__ import annotations

import pytest

from tracereplay.engines.protocol import without_unknown
from tracereplay.engines.toy.driver import ToyDriver
from tracereplay.engines.toy.options import KNOWN, check_settings
from tracereplay.errors import UsageError


def test_an_inherited_setting_that_the_engine_does_not_have_is_left_out() -> None:
    given = {"rounding": "once", "block_size": 32, "of_another": 1}
    assert without_unknown(given, {"block_size", "rounding"}, KNOWN) == {"rounding": "once", "of_another": 1}
    with pytest.raises(UsageError, match="of_another"):
        check_settings(without_unknown(given, {"block_size"}, KNOWN))
    with pytest.raises(UsageError, match="block_size"):
        ToyDriver().start("", {"block_size": 32})
