"""How many prompts and tokens make a match mean something: planted faults that workloads of several sizes find.

    python benchmarks/power.py [--engine v1|toy] [--prompts 1,4] [--tokens 1,4,16,64]

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tables
from replays import HERE, find, record, replay, started

from tracereplay.comparator import compare_traces
from tracereplay.engines.toy import record as record_toy
from tracereplay.engines.toy import replay as replay_toy
from tracereplay.engines.toy import workload as workload_of_toy
from tracereplay.engines.toy.flaws import flaws_of
from tracereplay.launch import Configured
from tracereplay.trace import Trace, open_trace
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
_LAYER = "model.layers.1"
FLAWS = (
    "model.layers.0.input_layernorm:scale", f"{_LAYER}.mlp.down_proj:element", "model.norm:eps",
    f"{_LAYER}.self_attn.o_proj:nan", f"{_LAYER}.self_attn.rotary_emb:rotary", f"{_LAYER}.self_attn.attn:stale",
    "model.embed_tokens:wrong_row", f"{_LAYER}.mlp.gate_up_proj:coarse", f"{_LAYER}.mlp.down_proj:floor",
    f"{_LAYER}.self_attn.o_proj:truncate", f"{_LAYER}.self_attn.o_proj:slight", "model.norm:short",
    "sampler:second", f"{_LAYER}.input_layernorm:scaled_edge:0", "model:positions", "model:swap",
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


Judge = Callable[[str, Trace, Path], Verdict]  # of golden, replayed with a fault into a new trace
Recorder = Callable[[int, int, Path], Trace]  # records prompts, of so many tokens each, without a fault


@contextmanager
def toy() -> Iterator[tuple[Recorder, Judge, tuple[str, ...]]]:
    """The toy engine, with flaws of every kind that it has, in milliseconds."""

    def made(prompts: int, tokens: int, out: Path) -> Trace:
        ids = [tuple(TEXTS[i % len(TEXTS)].encode()) for i in range(prompts)]
        return open_trace(record_toy(workload_of_toy(ids, max_tokens=tokens), out))

    def judged(fault: str, golden: Trace, out: Path) -> Verdict:
        return compare_traces(golden, replay_toy(golden.local_path(), out, flaw=flaws_of(fault)))

    yield made, judged, FLAWS


@contextmanager
def real(name: str, folder: Path) -> Iterator[tuple[Recorder, Judge, tuple[str, ...]]]:
    """An engine, started once, with the faults of the engine tests."""
    active = folder / "active"
    active.write_text("none")
    known = find(name)
    env = {**known.env, "PYTHONPATH": str(FAULTS), "TRACEREPLAY_TEST_FAULT": str(active)}
    engine = Configured(known.name, known.python, env, known.settings, known.family)
    with started(engine, TINY, folder) as process:

        def made(prompts: int, tokens: int, out: Path) -> Trace:
            return record(process, engine, TINY, workload(prompts, tokens), out)

        def judged(fault: str, golden: Trace, out: Path) -> Verdict:
            active.write_text(fault)
            try:
                return replay(process, engine, golden, TINY, out)
            finally:
                active.write_text("none")

        yield made, judged, PLANTED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--engine", default="v1", help="of the tiny Llama, or toy, which is built in")
    parser.add_argument("--prompts", default="1,4")
    parser.add_argument("--tokens", default="1,4,16,64")
    given = parser.parse_args()
    sizes = [(int(p), int(t)) for t in given.tokens.split(",") for p in given.prompts.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with toy() if given.engine == "toy" else real(given.engine, folder) as (made, judged, faults):
            for prompts, tokens in sizes:
                begun = time.monotonic()
                golden = made(prompts, tokens, folder / f"{prompts}-{tokens}.trace")
                missed: tuple[list[str], list[str]] = [], []
                for number, fault in enumerate(faults):
                    out = folder / f"{prompts}-{tokens}-{number}.trace"
                    for place, found in zip(missed, seen(judged(fault, golden, out)), strict=True):
                        if not found:
                            place.append(fault.split(":")[1] if ":" in fault else fault)
                told = [f"{len(faults) - len(names)} of {len(faults)}" for names in missed]
                rows.append([str(prompts), str(tokens), *told, ", ".join(missed[0]) or "-"])
                print(f"{rows[-1]} not by tokens: {missed[1]} {time.monotonic() - begun:.0f} s", file=sys.stderr)
    head = ["prompts", "tokens each", "found by operators", "found by tokens and logprobs", "operators miss"]
    print(tables.table(head, rows))


if __name__ == "__main__":
    main()
