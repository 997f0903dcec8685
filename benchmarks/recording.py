"""What the recorder costs beside a model without an engine, as ratios to the plain model in the same process.

    python benchmarks/recording.py [--prompt 128] [--decode 16] [--rounds 7] [WAY...]

Needs a registered engine for its interpreter, which has torch; no engine starts. Each generation (a prefill, then
decode steps) stands between two plain ones and is compared with their mean; figures are medians with quartiles.
The model has one thread, so that the writer has a core of its own where there are two. See
`guest/recording.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import tables

from tracereplay.environments.registry import load_engine
from tracereplay.launch.process import guest_environment

GUEST = Path(__file__).resolve().parent / "guest" / "recording.py"
WAYS = ("idle taps", "block outputs", "record")
Generation = Mapping[str, Any]
WALL, THREAD = 0, 1

FIGURES: Mapping[str, Callable[[Generation], float]] = {
    "decode step, median": lambda g: statistics.median(s[WALL] for s in g["steps"][1:]),
    "decode step, mean": lambda g: statistics.mean(s[WALL] for s in g["steps"][1:]),
    "decode step, mean, its thread's CPU": lambda g: statistics.mean(s[THREAD] for s in g["steps"][1:]),
    "the step after the prefill": lambda g: g["steps"][1][WALL],
    "prefill": lambda g: g["steps"][0][WALL],
    "generation": lambda g: sum(s[WALL] for s in g["steps"]),
    "generation, opened and closed": lambda g: g["open"] + sum(s[WALL] for s in g["steps"]) + g["close"],
}  # fmt: skip


def shown(found: Mapping[str, Any]) -> str:
    """The tables."""
    ran = found["generations"]
    ways = dict.fromkeys(way for way, _ in ran if way != "plain")
    plain = [g for way, g in ran if way == "plain"]

    def ratios(way: str, figure: Callable[[Generation], float]) -> str:
        places = [i for i, (name, _) in enumerate(ran) if name == way]
        around = [(figure(ran[i - 1][1]) + figure(ran[i + 1][1])) / 2 for i in places]
        return tables.spread([figure(ran[i][1]) / p for i, p in zip(places, around, strict=True)], digits=3)

    def milliseconds(seconds: Iterable[float]) -> str:
        return tables.spread([1000 * s for s in seconds], digits=1)

    rows = [[name, milliseconds(map(figure, plain)), *(ratios(way, figure) for way in ways)]
            for name, figure in FIGURES.items()]  # fmt: skip
    sides = [[way, *(milliseconds(g[side] for name, g in ran if name == way) for side in ("open", "close"))]
             for way in ways]  # fmt: skip
    sides.append(["nothing, opened and closed", milliseconds(found["nothing"]), ""])
    return "\n\n".join([
        tables.table(["ratio to plain (quartiles)", "plain, ms", *ways], rows),
        tables.table(["outside the generation, ms", "open", "close"], sides),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--engine", default="v1", help="a registered engine, for its interpreter")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prefill")
    parser.add_argument("--decode", type=int, default=16, help="decode steps after it")
    parser.add_argument("--rounds", type=int, default=7, help="after one that is not counted")
    parser.add_argument("--scratch", type=Path, help="where segments go")
    parser.add_argument("ways", nargs="*", default=WAYS, metavar="WAY")
    given = parser.parse_args()
    engine = load_engine(given.engine)
    with tempfile.TemporaryDirectory(dir=given.scratch, prefix="recording-") as scratch:
        counts = (given.prompt, given.decode, given.rounds)
        done = subprocess.run(
            [str(engine.python), str(GUEST), *map(str, counts), scratch, *given.ways],
            env=guest_environment(engine) | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
    print(shown(json.loads(done.stdout)))


if __name__ == "__main__":
    main()
