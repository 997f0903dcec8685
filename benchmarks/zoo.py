"""Every family of `fixtures/families.py`, recorded and replayed: what is seen, compared, and different.

    python benchmarks/zoo.py                                all families; writes benchmarks/ZOO.md
    python benchmarks/zoo.py --only llama,mixtral           some; renews their rows

Of each family a random model is made. vLLM 0.32.0 (the engine `v1`) records it and replays its own recording in
the same start; where vLLM 0.8.5 (`v0`) has the architecture, it records it too, and `v1` replays that.

    v0:  record ────────────┐
                            ▼
    v1:  record ▶ replay ▶ replay

An engine must match itself: every operator identical, no call left out, a census without gaps. Between the two
engines random models diverge, as their tokens do not withstand rounding; what counts there is that every call is
compared. A family that fails costs its row one sentence, and the next one is run.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tables
from lock import locked
from replays import (
    FAMILIES,
    HERE,
    PRESETS,
    find,
    kept,
    record,
    replay,
    sentence,
    short,
    started,
    token_ids,
    write_model,
)

from tracereplay.census import Census
from tracereplay.environments.registry import load_engine
from tracereplay.errors import TracereplayError
from tracereplay.launch import Configured
from tracereplay.launch.process import EngineProcess
from tracereplay.passes import RECORD
from tracereplay.trace import Trace
from tracereplay.verdict import Verdict
from tracereplay.workload import Prompt

SAMPLING = {"max_tokens": 6, "temperature": 0.0, "logprobs": 0, "ignore_eos": True}
LENGTHS = (24, 9, 1)  # tokens of each prompt; the first is longer than the windows of 16
HEAD = (
    "family", "golden", "candidate", "sites", "calls compared", "operators identical", "census gaps",
    "did not run", "verdict", "first reason", "seconds",
)  # fmt: skip


def prompts() -> tuple[Prompt, ...]:
    """Greedy prompts of printable bytes."""
    return tuple(Prompt(token_ids(length, seed), None, SAMPLING) for seed, length in enumerate(LENGTHS))


# -- running --------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A family on its way through the engines."""

    name: str
    scratch: Path

    def rows(self) -> Iterator[list[str]]:
        """Its rows of the table."""
        model = self.scratch / "model"
        write_model(self.name, model, PRESETS["zoo"])
        older: Trace | str | None = None
        begun = time.monotonic()
        if "v0" in FAMILIES[self.name].on:
            older = self._recorded(model)
        before = time.monotonic() - begun
        with contextlib.ExitStack() as stack:
            try:
                engine = find("v1")
                process = stack.enter_context(started(engine, model, self.scratch))
                golden = record(process, engine, model, prompts(), self.scratch / "v1.trace")
            except TracereplayError as error:
                yield self._failed("v1", error, begun)
                return
            yield self._row(process, engine, golden, model, "v1", time.monotonic() - begun - before)
            if isinstance(older, str):
                yield [self.name, "v0", "v1", *[""] * 5, "failed", older, f"{before:.0f}"]
            elif older is not None:
                yield self._row(process, engine, older, model, "v0", before)

    def _recorded(self, model: Path) -> Trace | str:
        """V0's recording, or why there is none."""
        try:
            engine = find("v0")
            with started(engine, model, self.scratch) as process:
                return record(process, engine, model, prompts(), self.scratch / "v0.trace")
        except TracereplayError as error:
            return sentence(error)

    def _row(
        self, process: EngineProcess, engine: Configured, golden: Trace, model: Path, name: str, before: float
    ) -> list[str]:
        begun = time.monotonic()
        try:
            verdict = replay(process, engine, golden, model, self.scratch / f"{name}-replayed.trace")
        except TracereplayError as error:
            return self._failed(name, error, begun - before)
        silent = {note for step in golden.steps(RECORD) for note in step.notes if "did not run" in note}
        seconds = time.monotonic() - begun + before
        return [self.name, name, "v1", *measured(verdict), str(len(silent)), *judged(verdict), f"{seconds:.0f}"]

    def _failed(self, name: str, error: TracereplayError, begun: float) -> list[str]:
        seconds = f"{time.monotonic() - begun:.0f}"
        return [self.name, name, "v1", *[""] * 5, "failed", sentence(error), seconds]


# -- the table ------------------------------------------------------------------------------------------------


def measured(verdict: Verdict) -> list[str]:
    """Sites, calls compared, identical operators and gaps of the census."""
    operators = {o.site: o.error_class for o in verdict.operators}
    identical = sum(kind == "identical" for kind in operators.values())
    coverage = verdict.coverage
    due = coverage.golden_calls - coverage.excused_calls
    sides = (coverage.census.golden, coverage.census.candidate)
    gaps = sum(gaps_of(side) for side in sides if side is not None)
    return [
        str(len(operators)), f"{coverage.compared_calls}/{due}", f"{identical}/{len(operators)}",
        "no census" if None in sides else str(gaps),
    ]  # fmt: skip


def gaps_of(side: Census) -> int:
    """Modules that compute unobserved, and parameters used neither in operators nor between them."""
    between = {row.module for row in side.between}
    left = [p for p in side.parameters if not p.users or not between.issuperset(p.users)]
    return len(side.unobserved) + len(left)


def judged(verdict: Verdict) -> list[str]:
    """The verdict with its cause, and the first sentence of its reasons."""
    cause = f" ({verdict.cause})" if verdict.cause else ""
    return [f"{verdict.verdict}{cause}", short(verdict.reasons[0]) if verdict.reasons else ""]


def page(rows: list[list[str]]) -> str:
    """The whole of ZOO.md."""
    v0, v1 = (load_engine(name).versions.get("vllm") for name in ("v0", "v1"))
    families = len({row[0] for row in rows})
    return f"""# The zoo

Random models of {families} families (`fixtures/families.py`, preset `zoo`): recorded by vLLM {v1} (`v1`) and
replayed by it, and where vLLM {v0} (`v0`) runs the architecture on a CPU, recorded by that and replayed by `v1`.
Three greedy prompts of 24, 9 and 1 tokens, 6 tokens each, eager. `python benchmarks/zoo.py` writes this page.

An engine must match itself: all calls compared, all operators identical, no gap in the census, nothing that did
not run. Between the engines a random model's tokens do not withstand rounding, so `diverged` is no fault there; a
call that is not compared, or a cause other than rounding, has to be explained:

- `v1` runs GPT-NeoX, Phi, OLMo 2, Starcoder2 and GLM by transformers' definitions. Those compute cosines once for
  all layers and rotate between operators; GLM's multiplies gate and up there, too. `v0` has operators for that
  (`rotary_emb`, `act_fn`), which `v1` has not: what they give is compared where it arrives.
- GPT-NeoX's checkpoint has q, k and v head by head. `v0` puts them in order as it loads them and transformers do
  not: golden's are put in the candidate's order to be compared.
- DeepSeek under `v0` expands keys and values for its attention, under `v1` it does not, or only for prompts
  (`kv_b_proj`). Its rotary embedding exceeds rightly: the CPU kernel takes a wrong stride of a tensor that is part
  of a wider one, of queries in both engines, of keys in `v1`. A float64 reference agrees with the keys of `v0`.
- `v0` takes a LongRoPE model's long factors in steps with a position beyond the original context, `v1` in all if
  `max_model_len` is beyond it: `rotary_emb` exceeds rightly, as a float64 reference shows for both.
- Attention of `v0` on a CPU has a window in every layer of Gemma 2 and 3, and leaves out Gemma 2's cap on logits:
  `attn` exceeds rightly. A float64 reference agrees with `v1`.
- `v0`'s kernels truncate in norms and in attention. All siblings do, so that no operator is `biased` for it
  (`tracereplay/comparator/TOLERANCES.md`).

{tables.table(HEAD, rows)}
"""


# -- the command ----------------------------------------------------------------------------------------------


def main() -> None:
    given = _parse()
    target = HERE / "ZOO.md"
    rows: list[list[str]] = []
    for name in given.only or [name for name, family in FAMILIES.items() if family.on]:
        with tempfile.TemporaryDirectory(prefix="zoo-") as scratch, locked(given.lock):
            case = Case(name, given.keep / name if given.keep else Path(scratch))
            case.scratch.mkdir(parents=True, exist_ok=True)
            for row in case.rows():
                rows.append(row)
                print(" | ".join(row), file=sys.stderr, flush=True)
        others = [row for row in kept(target, HEAD) if row[0] not in {name for name, *_ in rows}]
        order = list(FAMILIES)
        every = [row for row in [*others, *rows] if row[0] in order]
        target.write_text(page(sorted(every, key=lambda row: order.index(row[0]))))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Record and replay every family of the zoo.")
    parser.add_argument("--only", type=lambda text: text.split(","), help="families, with commas between")
    parser.add_argument("--keep", type=Path, help="folder that keeps models, traces and logs")
    parser.add_argument("--lock", type=Path, help="file to lock while an engine runs")
    given = parser.parse_args()
    for name in given.only or ():
        if name not in FAMILIES:
            parser.error(f"There is no family {name!r}; there are {', '.join(FAMILIES)}.")
    return given


if __name__ == "__main__":
    main()
