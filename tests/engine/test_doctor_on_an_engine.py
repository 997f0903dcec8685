"""The doctor, on a real engine."""

from __future__ import annotations

import pytest
from engine_support import Engines, find_engine

from tracereplay.environments.doctor import examine

pytestmark = pytest.mark.engine


def test_a_real_engine_is_well(engines: Engines) -> None:
    engines.stop()  # the doctor starts one of its own
    findings = list(examine(find_engine("v1")))
    assert [f for f in findings if f.level == "error"] == []
    assert "generated one token" in findings[-1].what
