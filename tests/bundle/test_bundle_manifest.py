"""A bundle's manifest, of a stranger: read as it was written, or refused in a sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracereplay.bundle.manifest import Listed, Manifest, read_manifest
from tracereplay.bundle.redaction import Redaction
from tracereplay.errors import BadBundle

SHOWN = {"verdict": "match", "cause": None, "first_divergence": None, "first_token": None}
WHOLE = Manifest(
    "0.1.0", "2026-01-01T00:00:00+00:00", Redaction.tokens, SHOWN, SHOWN, {"digest": "0" * 32}, ("a",), ("b",), (),
    {"report.html": Listed(3, "0" * 64), "model/model-00001-of-00002.safetensors": Listed(0, "f" * 64)},
)  # fmt: skip
SAID: dict[str, Any] = json.loads(WHOLE.as_text())
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


def test_it_is_read_as_it_was_written() -> None:
    assert read_manifest(WHOLE.as_text().encode(), "bug.zip") == WHOLE


@given(key=st.sampled_from(sorted(SAID)), value=values)
def test_whatever_stands_in_it_is_refused_or_harmless(key: str, value: Any) -> None:
    try:
        found = read_manifest(json.dumps({**SAID, key: value}).encode(), "bug.zip")
    except BadBundle as error:
        said = str(error)
    else:
        said = "one line"
        assert all(name in SAID["files"] or name == "report.html" for name in found.files)
        assert all(isinstance(line, str) for line in (*found.reduced, *found.removed, *found.absent))
    assert said.isprintable()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema": 2}, "later version"),
        ({"redacted": "everything"}, "everything"),
        ({"files": {"../x": {"size": 1, "sha256": "0" * 64}}}, "which no bundle has"),
        ({"files": {"model/code.py": {"size": 1, "sha256": "0" * 64}}}, "which no bundle has"),
        ({"files": {"report.html": {"size": -1, "sha256": "0" * 64}}}, "a size or a digest that is none"),
        ({"files": {"report.html": {"size": 1, "sha256": "0" * 63}}}, "a size or a digest that is none"),
        ({"removed": "all"}, "where sentences belong"),
    ],
)
def test_what_no_bundle_says_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(BadBundle, match=why):
        read_manifest(json.dumps({**SAID, **change}).encode(), "bug.zip")


def test_a_key_is_there_once() -> None:
    twice = WHOLE.as_text().replace('"schema": 1,', '"schema": 1, "schema": 1,').encode()
    with pytest.raises(BadBundle):
        read_manifest(twice, "bug.zip")
