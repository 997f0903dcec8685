"""The committed verdict is one of the committed golden trace, and the README shows it."""

from __future__ import annotations

import json
from pathlib import Path

from tracereplay.trace import open_trace
from tracereplay.verdict import Verdict

ROOT = Path(__file__).parents[1]


def test_the_committed_verdict_is_of_the_committed_trace() -> None:
    data = json.loads((ROOT / "fixtures" / "tiny-llama-v0-to-v1.json").read_text())
    verdict = Verdict.from_dict(data)
    assert (verdict.verdict, verdict.cause) == ("diverged", "rounding")
    assert data["golden"]["digest"] == open_trace(ROOT / "fixtures" / "tiny-llama-v0.trace").digest()
    parted = data["tokens"]["first_divergence"]
    assert [parted[key] for key in ("request", "position", "golden", "candidate")] == [1, 15, 97, 101]


def test_the_readme_shows_that_verdict() -> None:
    data = json.loads((ROOT / "fixtures" / "tiny-llama-v0-to-v1.json").read_text())
    shown = (ROOT / "README.md").read_text()
    assert f"logprobs by {data['tokens']['logprob_abs_diff']['max']:.3g} (0.05 allowed)" in shown
    assert "request 1, position 15: token 97 ('a') in golden, 101 ('e') in the candidate" in shown
