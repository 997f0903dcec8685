"""Bundles of replays in isolation: a kernel's results, its call as a script, and no request of anybody."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "comparator"))

from kernel_support import call, tensor, write_golden, write_isolated

from tracereplay.bundle import Redaction, check_bundle, make_bundle

X = np.linspace(1, 2, 64, dtype=np.float32).reshape(2, 32)


@pytest.mark.parametrize("redaction", [None, Redaction.prompts, Redaction.values])
def test_a_kernel_that_differs_is_in_its_bundle(tmp_path: Path, redaction: Redaction | None) -> None:
    add = call("aten.add.Tensor", [tensor(X)], arguments=[tensor(X), tensor(X)])
    golden = write_golden(tmp_path / "golden.trace", [add])
    wrong = X.copy()
    wrong[1, 3] *= 1.1
    candidate = write_isolated(tmp_path / "candidate.trace", golden, [call("aten.add.Tensor", [tensor(wrong)])])
    out = tmp_path / "bug.zip"
    made = make_bundle(Path(golden.path), Path(candidate.path), out, max_size=1 << 20, redaction=redaction)
    assert made.contents.verdict == made.contents.whole
    first = made.contents.verdict["first_divergence"]
    assert (first["kind"], first["site"], first["class"]) == ("operator", "model.norm", "exceeds")
    assert check_bundle(out).verdict.mode == "isolated"
    readme = zipfile.ZipFile(out).read("README.md").decode()
    assert ("--mode isolated" in readme) == (redaction is not Redaction.values)
