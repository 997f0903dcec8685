"""Replays in which nothing is wrong, of random models of many families, shapes and seeds: no false alarm.

    python benchmarks/clean.py                  20 models, some 180 replays; writes benchmarks/CLEAN.md
    python benchmarks/clean.py                  again: goes on with the models that have no rows yet
    python benchmarks/clean.py --count 40       more of them; those of CLEAN.md are kept
    python benchmarks/clean.py --only 3,7       some, again
    python benchmarks/clean.py --seed 1         others

Model number k of a seed is always the same: its family, shape, dtype and weights are drawn, and so are the
workloads of its goldens: how many prompts, how long, greedy or sampled. An engine that has started records or
replays all goldens of the model:

    versions    v0:      record 3x ─────────────┐
                v1-0.18: record 3x ────────────┐│
                                               ▼▼
                v1:      record 3x ▶ replay 9x
    backend     v1:      record 3x ▶ replay 3x ─┐
                                                ▼
                v1 of a model of transformers: replay 3x
    compiled    the same with a compiled v1

Where engines differ in truth (benchmarks/ZOO.md says where and why) they are not paired. So whatever a verdict
blames here is a false alarm. Tokens of random models part at a rounding; that is no alarm.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tables
from lock import locked
from replays import FAMILIES, HERE, Size, find, kept, record, replay, sentence, started, token_ids, write_model

from tracereplay.environments.registry import load_engine
from tracereplay.errors import TracereplayError
from tracereplay.trace import Trace
from tracereplay.verdict import Verdict
from tracereplay.workload import Prompt

GOLDENS = 3
KINDS = (
    "versions", "versions", "backend", "versions", "versions",
    "compiled", "versions", "versions", "backend", "versions",
)  # fmt: skip

# Native in 0.8.5 and 0.32.0, and without true differences; see ZOO.md.
SAME_SINCE_V0 = ("llama", "qwen2", "qwen3", "gemma", "opt", "gpt2", "falcon", "bloom", "glm4")
NEWER = ("gemma2", "mixtral", "gemma3", "qwen3_moe", "deepseek_v3", "mamba2", "phi3_longrope", "qwen2_moe")
VERSIONS = tuple(name for pair in zip(SAME_SINCE_V0, [*NEWER, ""], strict=True) for name in pair if name)
OTHER = ("llama", "qwen3", "qwen2", "gemma", "glm4", "opt")  # eager and compiled, native and of transformers

# Why may these be missing? A model of transformers computes cosines once for all layers and rotates between
# operators: there is no such operator to compare. What it gives is compared where it arrives. A compiler removes
# what nothing uses: the residual that the last norm returns.
NO_COUNTERPART = {"backend": frozenset({"rotary_emb"}), "compiled": frozenset({"norm"})}

HEAD = (
    "model", "family", "shape", "golden", "candidate", "replays", "calls compared", "identical", "rounding",
    "of the allowance", "of the bias", "siblings", "tokens parted", "verdicts", "false alarms", "seconds",
)  # fmt: skip

# -- what is drawn --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """Number ``number`` of a seed: what kind of pairs, which family, which shape, which goldens."""

    seed: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.seed}.{self.number:02d}"

    @property
    def kind(self) -> str:
        return KINDS[self.number % len(KINDS)]

    @property
    def family(self) -> str:
        """The families of its kind in turn."""
        before = sum(KINDS[i % len(KINDS)] == self.kind for i in range(self.number))
        given = VERSIONS if self.kind == "versions" else OTHER
        return given[(before + self.seed) % len(given)]

    @property
    def size(self) -> Size:
        """Its shape: small, but of many proportions."""
        random = self._random("size")
        sizes = FAMILIES[self.family].sizes
        head_dim, heads = int(random.choice((32, 64, 96, 128))), int(random.choice((2, 4, 6, 8)))
        head_dim = 64 if self.family == "mamba2" else head_dim
        free = "head_dim" in sizes.values() and self.family != "qwen2"  # 0.8.5 divides Qwen2's hidden size
        unit = math.lcm(32, heads)  # transformers want a multiple of the heads, even where the width is free
        hidden = -(-32 * int(random.integers(3, 13)) // unit) * unit if free else heads * head_dim
        hidden = 256 if self.family == "mamba2" else hidden  # 8 heads of 64 are twice that
        groups = [n for n in range(1, heads + 1) if heads % n == 0]
        return Size(
            layers=int(random.integers(2, 6)), hidden=hidden, heads=heads, kv_heads=int(random.choice(groups)),
            head_dim=head_dim, intermediate=32 * int(random.integers(4, 25)),
            vocab=64 * int(random.integers(8, 49)), experts=int(random.choice((4, 6, 8))),
            dtype="float32" if random.random() < 0.25 else "bfloat16", seed=int(random.integers(1 << 16)),
        )  # fmt: skip

    @property
    def shape(self) -> str:
        """Its shape in a few words: layers, hidden size, heads/key-value heads x head dimension, and so on."""
        s = self.size
        dtype = " float32" if s.dtype == "float32" else ""
        heads = f"{s.heads}/{s.kv_heads}x{s.head_dim}"
        return f"{s.layers}L {s.hidden} {heads} {s.intermediate} v{s.vocab}{dtype}"

    def goldens(self) -> list[list[Prompt]]:
        """The prompts of each golden: a batch of some, one that samples, one long one."""
        random = self._random("goldens")
        batch = [int(random.integers(1, 90)) for _ in range(int(random.integers(3, 9)))]
        few = [int(random.integers(12, 60)) for _ in range(int(random.integers(1, 3)))]
        sampled = {"temperature": 1.0, "seed": int(random.integers(1 << 16))}
        long = [int(random.integers(120, 400))]
        given: list[tuple[list[int], dict[str, Any]]] = [(batch, {}), (few, sampled), (long, {})]
        return [[self._prompt(length, random, sampling) for length in lengths] for lengths, sampling in given]

    def _prompt(self, length: int, random: np.random.Generator, sampling: Mapping[str, Any]) -> Prompt:
        greedy = {"temperature": 0.0, "logprobs": 0, "ignore_eos": True, "max_tokens": int(random.integers(4, 9))}
        return Prompt(token_ids(length, int(random.integers(90))), None, {**greedy, **sampling})

    def _random(self, what: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.number, zlib.crc32(what.encode())])


# -- what an alarm is -----------------------------------------------------------------------------------------

# Why is one sampler in three not compared? What is drawn at random is no error, and is forced in a replay.
HARMLESS = ("identical", "rounding")
DRAWN = "drawn at random"


def alarms(verdict: Verdict, *, itself: bool, may_lack: frozenset[str] = frozenset()) -> list[str]:
    """What a verdict on honest engines says to be wrong, in sentences.

    Args:
        itself: the two are one engine, so that every bit has to match.
        may_lack: last parts of the names of operators that the candidate lacks, or lacks an output of.
    """
    left_out = [left for left in verdict.coverage.not_compared if not left.reason.startswith(DRAWN)]
    drawn = {left.site for left in verdict.coverage.not_compared if left.reason.startswith(DRAWN)}
    lacking = [left for left in left_out if left.site.rpartition(".")[2] in may_lack]
    harmless = HARMLESS[:1] if itself else HARMLESS
    found = [
        f"{place.operator} at {place.site} is {place.error_class}"
        for place in (*verdict.operators, *verdict.edges)
        if place.error_class not in harmless and place.site not in drawn
    ]
    found += [f"{left.site} is not compared: {left.reason}" for left in left_out if left not in lacking]
    unpaired = any("no such site" in left.reason for left in lacking)
    known = {None, *(() if itself else ("rounding",)), *(("structure",) if unpaired else ())}
    if verdict.cause not in known or (verdict.verdict == "inconclusive" and not unpaired):
        found.append(f"{verdict.verdict} ({verdict.cause}): {' '.join(verdict.reasons)}")
    return found


# -- rows -----------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """A model and a pair of engines: what all its replays show together."""

    model: Model
    golden: str
    candidate: str
    verdicts: list[Verdict] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    alarmed: int = 0  # verdicts that raise any
    seconds: float = 0.0

    def add(self, verdict: Verdict, **kind: Any) -> None:
        found = alarms(verdict, **kind)
        self.verdicts.append(verdict)
        self.alarmed += bool(found)
        self.alarms += [f"{self.model.name} {self.golden}: {one}" for one in found]

    def cells(self) -> list[str]:
        operators = [o for verdict in self.verdicts for o in verdict.operators]
        classes = [o.error_class for o in operators]
        coverages = [verdict.coverage for verdict in self.verdicts]
        due = sum(c.golden_calls - c.excused_calls for c in coverages)
        measured = [o.metrics for o in operators]
        siblings = [m.siblings.score or 0.0 for m in measured if m.siblings is not None]
        said = [f"{v.verdict} ({v.cause})" if v.cause else v.verdict for v in self.verdicts]
        return [
            *self._begins(), str(len(self.verdicts)), f"{sum(c.compared_calls for c in coverages)}/{due}",
            str(classes.count("identical")), str(classes.count("rounding")),
            f"{max((m.allowance_ratio for m in measured), default=0):.2f}",
            f"{max((abs(m.bias_ulp) for m in measured), default=0):.2f}", f"{max(siblings, default=0):.1f}",
            f"{sum(v.tokens.differing for v in self.verdicts)}/{sum(v.tokens.compared for v in self.verdicts)}",
            ", ".join(f"{said.count(one)} {one}" for one in dict.fromkeys(said)), str(self.alarmed),
            f"{self.seconds:.0f}",
        ]  # fmt: skip

    def failed(self, error: Exception) -> list[str]:
        """What there is to tell of a pair that could not be run."""
        done = [*self._begins(), str(len(self.verdicts)), *[""] * 7]
        return [*done, f"failed: {sentence(error)}", str(self.alarmed), f"{self.seconds:.0f}"]

    def _begins(self) -> list[str]:
        return [self.model.name, self.model.family, self.model.shape, self.golden, self.candidate]


# -- running --------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A model on its way through the engines."""

    model: Model
    scratch: Path
    tell: Callable[[str], None]

    def rows(self) -> Iterator[list[str]]:
        write_model(self.model.family, self.scratch / "model", self.model.size)
        if self.model.kind == "versions":
            older = [name for name in ("v0", "v1-0.18") if name != "v0" or self.model.family in SAME_SINCE_V0]
            given: list[tuple[str, list[Trace], float]] = []
            for name in older:
                found, row = self._recorded(name)
                if row is not None:
                    yield row
                else:
                    given.append((name, *found))
            yield from self._start("v1", given, itself="v1")
            return
        before: list[tuple[str, list[Trace], float]] = []
        yield from self._start("v1", [], itself="v1", leaves=before)
        other = {"backend": {"model_impl": "transformers"}, "compiled": {"enforce_eager": False}}[self.model.kind]
        if before:
            yield from self._start("v1", before, **other)

    def _recorded(self, name: str) -> tuple[tuple[list[Trace], float], list[str] | None]:
        """All goldens by an older engine and the seconds they took, or the row that says why there are none."""
        begun = time.monotonic()
        try:
            engine = find(name)
            with started(engine, self.scratch / "model", self.scratch) as process:
                return (self._goldens(process, engine), time.monotonic() - begun), None
        except TracereplayError as error:
            row = Row(self.model, name, "v1", seconds=time.monotonic() - begun)
            return ([], 0.0), row.failed(error)

    def _goldens(self, process: Any, engine: Any) -> list[Trace]:
        model = self.scratch / "model"
        return [
            record(process, engine, model, prompts, self.scratch / f"{engine.name}-{number}.trace")
            for number, prompts in enumerate(self.model.goldens())
        ]

    def _start(
        self, name: str, given: Sequence[tuple[str, list[Trace], float]], *, itself: str = "",
        leaves: list[tuple[str, list[Trace], float]] | None = None, **settings: Any,
    ) -> Iterator[list[str]]:  # fmt: skip
        """One start of the candidate: replays what was ``given``, and, with ``itself``, its own goldens."""
        begun = time.monotonic()
        candidate = name if itself else f"{name} {self.model.kind}"
        rows = [Row(self.model, golden, candidate, seconds=spent) for golden, _, spent in given]
        goldens = [recorded for _, recorded, _ in given]
        if itself:
            rows.insert(0, Row(self.model, itself, candidate))
        todo = list(rows)
        try:
            engine = find(name, **settings)
            with started(engine, self.scratch / "model", self.scratch) as process:
                if itself:
                    goldens.insert(0, self._goldens(process, engine))
                for row, recorded in zip(rows, goldens, strict=True):
                    yield self._replayed(process, engine, row, recorded, begun)
                    todo.remove(row)
                    begun = time.monotonic()
        except TracereplayError as error:
            for row in todo:
                row.seconds += time.monotonic() - begun
                yield row.failed(error)
                begun = time.monotonic()
            return
        if leaves is not None:
            leaves.append((itself, goldens[0], 0.0))

    def _replayed(self, process: Any, engine: Any, row: Row, goldens: Sequence[Trace], begun: float) -> list[str]:
        """A row of replays in a running engine."""
        may_lack = NO_COUNTERPART.get(self.model.kind, frozenset()) if row.candidate != row.golden else frozenset()
        for number, golden in enumerate(goldens):
            stem = f"{row.golden}-{row.candidate.replace(' ', '-')}-{number}"
            verdict = replay(process, engine, golden, self.scratch / "model", self.scratch / f"{stem}.trace")
            (self.scratch / f"{stem}.json").write_text(json.dumps(verdict.as_dict()))
            row.add(verdict, itself=row.candidate == row.golden, may_lack=may_lack)
        for alarm in row.alarms:
            self.tell(alarm)
        row.seconds += time.monotonic() - begun
        return row.cells()


# -- the page -------------------------------------------------------------------------------------------------


def page(rows: Sequence[Sequence[str]]) -> str:
    """The whole of CLEAN.md."""
    at = HEAD.index
    versions = {name: load_engine(name).versions.get("vllm") for name in ("v0", "v1-0.18", "v1")}
    engines = ", ".join(f"{version} (`{name}`)" for name, version in versions.items())
    run = [row for row in rows if not row[at("verdicts")].startswith("failed")]
    summary = [[pair, *_together(found)] for pair, found in _by_pair(run).items()]
    failed = [f"{row[0]} ({row[1]}), {row[3]} to {row[4]}" for row in rows if row not in run]
    models, families = len({row[0] for row in rows}), len({row[1] for row in rows})
    minutes = sum(int(row[at("seconds")]) for row in rows) // 60
    return f"""# Clean replays

{_sum(rows, "replays")} replays in which nothing is wrong, {_sum(rows, "false alarms")} with a false alarm.
{models} random models of {families} families, vLLM {engines}, {minutes} minutes on two cores;
pairs that could not be run: {"; ".join(failed) or "none"}. `python benchmarks/clean.py` draws the models and
their workloads, runs them and writes this page; its docstring says what is drawn.

A **false alarm** is a verdict that blames anything: an operator or an edge that is `biased`, `exceeds`, is not
finite or cannot be compared; a cause other than rounding; a call that is left out; or that is inconclusive. Of an
engine and itself, a bit that differs is one too. Tokens that part are none: those of a random model do not
withstand rounding. What is drawn at random (one golden of three is sampled) is forced in a replay, not compared.
Pairs whose engines differ in truth are left out; [ZOO.md](ZOO.md) lists them and says why.

Two things are known and allowed. A model of transformers (`v1 backend`) rotates between operators, so that
golden's `rotary_emb` has no counterpart, and of a small model that is more than a tenth of the calls. The verdict
is then `inconclusive`, or `diverged (structure)` where a token or a logprob parts, and says so. And a compiler
removes what nothing uses: the residual that the last norm returns.

What the first runs found:

- Qwen3-MoE, `v1-0.18` to `v1`, was `structure`, and no expert was compared: 0.18.1 gives experts the router's
  logits, 0.32.0 gives them the hidden states twice and has them run the gate. They are now compared by what the
  gate gives (`tracereplay/comparator/numbers/gates.py`).
- So compared, two experts of one replay exceeded, by 13 % at most, in single elements near zero: a false alarm.
  Against a float64 reference neither side is wrong: in steps with a clear choice of experts both are within 0.53
  of the allowance. 0.18.1 rounds gate and up, the activation, each expert's output and their sum to bfloat16 (it
  has no kernel for this shape), 0.32.0's kernel truncates. Experts are a whole network and round more often than
  `b` allows for. So their single elements have a limit of their own, 1.5 times the allowance, and that is what
  counts as 1 in "of the allowance" (`tracereplay/comparator/TOLERANCES.md` has the model).

## By pair
{tables.table(SUMMARY, summary)}

*Of the allowance*: the largest error of an operator on golden inputs; 1 is what is allowed. *Of the bias*: the
largest mean bias, in ulp; 1.25 is allowed where siblings share it and it looks like a truncating cast's, 0.1
elsewhere if it is no chance. *Siblings*: how many standard deviations the farthest operator lies from those like
it; from five on it is `biased`, if it is far too (`tracereplay/comparator/TOLERANCES.md`).

## By model
Shape: layers, hidden size, heads/key-value heads x head dimension, intermediate size, vocabulary, and the dtype
if it is not bfloat16. Each has {GOLDENS} goldens: a batch of prompts, one or two that sample, a long one.

{tables.table(HEAD, rows)}
"""


def _sum(rows: Sequence[Sequence[str]], name: str) -> int:
    return sum(int(row[HEAD.index(name)] or 0) for row in rows)


def _together(rows: Sequence[Sequence[str]]) -> list[str]:
    """What the rows of a pair of engines show together."""
    largest = (max(float(row[HEAD.index(name)] or 0) for row in rows) for name in LARGEST)
    counts = [str(_sum(rows, name)) for name in ("replays", "identical", "rounding")]
    models = str(len({row[0] for row in rows}))
    return [models, *counts, *(f"{one:.2f}" for one in largest), str(_sum(rows, "false alarms"))]


LARGEST = ("of the allowance", "of the bias", "siblings")
SUMMARY = ("pair", "models", "replays", "identical", "rounding", *LARGEST, "false alarms")


def _by_pair(rows: Sequence[Sequence[str]]) -> dict[str, list[Sequence[str]]]:
    found: dict[str, list[Sequence[str]]] = {}
    for row in rows:
        found.setdefault(f"{row[HEAD.index('golden')]} to {row[HEAD.index('candidate')]}", []).append(row)
    return found


# -- the command ----------------------------------------------------------------------------------------------


def main() -> None:
    given = _parse()
    target = HERE / "CLEAN.md"
    done = {row[0] for row in kept(target, HEAD)}
    wanted = [Model(given.seed, number) for number in given.only or range(given.count)]
    for model in wanted:
        if model.name in done and not given.only:
            continue
        rows: list[list[str]] = []
        with tempfile.TemporaryDirectory(prefix="clean-") as scratch, locked(given.lock):
            folder = given.keep / model.name if given.keep else Path(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            for row in Run(model, folder, tell).rows():
                rows.append(row)
                tell(" | ".join(row))
        others = [row for row in kept(target, HEAD) if row[0] != model.name]
        target.write_text(page(sorted([*others, *rows], key=lambda row: tuple(map(int, row[0].split("."))))))


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Replay honest engines and count false alarms.")
    parser.add_argument("--count", type=int, default=20, help="models (20)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    parser.add_argument(
        "--only", type=lambda text: [int(part) for part in text.split(",")], help="numbers of models, with commas"
    )
    parser.add_argument("--keep", type=Path, help="folder that keeps models, traces, verdicts and logs")
    parser.add_argument("--lock", type=Path, help="file to lock while engines run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
