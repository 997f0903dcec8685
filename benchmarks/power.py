"""How many prompts and tokens make a match mean something: planted faults that workloads of several sizes find.

    python benchmarks/power.py [--engine v1] [--prompts 1,4] [--tokens 1,4,16,64]

Golden is recorded without a fault, and replayed with one planted after the other, all in one engine start. A
replay's two passes tell two things: whether an operator or edge is out of tolerance (injected), and whether a
greedy token or a logprob is (rerun), which is all that a check of outputs sees. Prints a table for
examples/upgrade/README.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import tables
from replays import HERE, find, record, replay, started

from tracereplay.launch import Configured
from tracereplay.verdict import Verdict
from tracereplay.workload import Prompt

TINY = HERE.parent / "fixtures" / "tiny-llama"
FAULTS = HERE.parent / "tests" / "engine" / "faults"
LOGPROB = 0.05  # that may differ, as in the default policy
PLANTED = (
    "scale", "five_sigma", "epsilon", "late_positions", "stale_key", "late_nan", "wrong_row", "rounded_logits",
    "other_activation", "soft_attention", "biased_keys", "coarse_weights", "final_norm", "slight_product",
    "truncated_product", "scaled_residual", "shifted_positions",
)  # fmt: skip
TEXTS = (
    "Python is ", " because the ", " will be executed. Only ", "The first argument", "def read(", "If the file",
    "a list of ", "Return the ", "import ", "This module", "class ", "# Note that", "When a ", "raise ",
    "for x in ", "An object",
)  # fmt: skip


def workload(prompts: int, tokens: int) -> list[Prompt]:
    sampling = {"max_tokens": tokens, "temperature": 0.0, "logprobs": 0, "ignore_eos": True}
    return [Prompt(tuple(TEXTS[i % len(TEXTS)].encode()), None, sampling) for i in range(prompts)]


def seen(verdict: Verdict) -> tuple[bool, bool]:
    """Whether operators show a fault, and whether tokens and logprobs do."""
    tokens = verdict.tokens
    return verdict.first_divergence is not None, bool(tokens.differing) or (tokens.logprob_max or 0) > LOGPROB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", default="v1")
    parser.add_argument("--prompts", default="1,4")
    parser.add_argument("--tokens", default="1,4,16,64")
    given = parser.parse_args()
    sizes = [(int(p), int(t)) for t in given.tokens.split(",") for p in given.prompts.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        active = folder / "active"
        active.write_text("none")
        known = find(given.engine)
        env = {**known.env, "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(active)}
        engine = Configured(known.name, known.python, env, known.settings, known.family)
        rows = []
        with started(engine, TINY, folder) as process:
            for prompts, tokens in sizes:
                begun = time.monotonic()
                golden = record(
                    process, engine, TINY, workload(prompts, tokens), folder / f"{prompts}-{tokens}.trace"
                )
                missed: tuple[list[str], list[str]] = [], []
                for fault in PLANTED:
                    active.write_text(fault)
                    out = folder / f"{prompts}-{tokens}-{fault}.trace"
                    for place, found in zip(missed, seen(replay(process, engine, golden, TINY, out)), strict=True):
                        if not found:
                            place.append(fault)
                active.write_text("none")
                found = [f"{len(PLANTED) - len(names)} of {len(PLANTED)}" for names in missed]
                rows.append([str(prompts), str(tokens), *found, ", ".join(missed[0]) or "-"])
                print(f"{rows[-1]} not by tokens: {missed[1]} {time.monotonic() - begun:.0f} s", file=sys.stderr)
    head = ["prompts", "tokens each", "found by operators", "found by tokens and logprobs", "operators miss"]
    print(tables.table(head, rows))


if __name__ == "__main__":
    main()
