"""How often siblings raise a false alarm, and which faults they show, by the number of layers.

    python benchmarks/siblings.py [VERDICTS]        prints TOLERANCES.md's tables, in a quarter of an hour

**Honest verdicts** are drawn as profiles: each group of siblings has a common bias, as engines show it, and each
sibling departs from it by chance. How far the siblings of a group lie apart is drawn from what real engines show
(`SPREADS`); how they are distributed is not known, so several ways are tried. **Power** is measured on tensors:
the faults are planted in simulated operators, rounded to bfloat16, and judged as a verdict judges them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tables

from tracereplay.comparator.numbers.leans import judge_leans
from tracereplay.comparator.numbers.profiles import Mean, Profile
from tracereplay.comparator.numbers.siblings import standing
from tracereplay.comparator.numbers.tally import BIAS_ULP, SIGN_ULP, Tally, compare_rows
from tracereplay.comparator.numbers.tolerance import DEFAULTS
from tracereplay.dtypes import numpy_dtype

Array = npt.NDArray[Any]
Random = np.random.Generator

DTYPE = "bfloat16"
EPS = 2.0**-7
ROWS, WIDTH = 64, 256
LAYERS = (2, 3, 4, 8, 12, 24, 48, 80)

# Siblings in each group of a Llama of n layers whose every operator differs: two outputs of fused norms, rotary
# embeddings of q and k, attention, activation, four linear layers.
GROUPS: Sequence[Callable[[int], int]] = (
    *[lambda n: 2 * n] * 2, *[lambda n: n] * 2, lambda n: n, lambda n: n, *[lambda n: n] * 4,
)  # fmt: skip
BIASES = (0.0, 0.0, 0.25, -0.25, 0.5, 0.8)  # ulp, of a group
SPREADS = 0.003, 0.06  # ulp, of the siblings in a group, the least and the greatest
L2_SPREAD = 0.15  # of its logarithm


def normal(random: Random, count: int) -> Array:
    return random.standard_normal(count)


def heavy(random: Random, count: int) -> Array:
    return random.standard_t(3, count) / np.sqrt(3)


def uniform(random: Random, count: int) -> Array:
    return random.uniform(-np.sqrt(3), np.sqrt(3), count)


def two_kinds(random: Random, count: int) -> Array:
    """As if every other operator computed something else."""
    return np.where(np.arange(count) % 2, 1.0, -1.0) + 0.1 * random.standard_normal(count)


def trend(random: Random, count: int) -> Array:
    """With the depth in the model."""
    return np.linspace(-np.sqrt(3), np.sqrt(3), count) + 0.1 * random.standard_normal(count)


def first_apart(random: Random, count: int) -> Array:
    """One of them, as the first layer, is four standard deviations from the others."""
    return random.standard_normal(count) + np.where(np.arange(count) == 0, 4.0, 0.0)


DISTRIBUTIONS: Mapping[str, Callable[[Random, int], Array]] = {
    "normal": normal, "t, 3 degrees": heavy, "uniform": uniform, "two kinds": two_kinds,
    "a trend with depth": trend, "the first 4 sd apart": first_apart,
}  # fmt: skip


def honest_group(random: Random, count: int, draw: Callable[[Random, int], Array]) -> list[Profile]:
    """Profiles of siblings that round alike."""
    bias, spread = random.choice(BIASES), np.exp(random.uniform(*np.log(SPREADS)))
    lean = bias + spread * draw(random, count)
    differing = np.clip(max(abs(bias), 0.2) + spread * draw(random, count), 0, 1)
    l2 = 0.5 * np.exp(L2_SPREAD * spread / SPREADS[1] * draw(random, count))
    zero = Mean(0.0, 0.0)
    columns = zip(lean.tolist(), differing.tolist(), l2.tolist(), strict=True)
    return [Profile(Mean(a, 0.0), Mean(b, 0.0), Mean(c, 0.0), zero) for a, b, c in columns]


def alarms(random: Random, layers: int, draw: Callable[[Random, int], Array]) -> int:
    """How many operators of an honest verdict stand apart from their siblings."""
    found = 0
    for size in GROUPS:
        profiles = honest_group(random, size(layers), draw)
        for i, own in enumerate(profiles):
            found += standing(own, [*profiles[:i], *profiles[i + 1 :]], BIAS_ULP)[1]
    return found


def false_alarms(verdicts: int, layers: int, draw: Callable[[Random, int], Array], seed: int = 0) -> float:
    """Share of honest verdicts with any alarm."""
    randoms = (np.random.default_rng([seed, layers, i]) for i in range(verdicts))
    return sum(alarms(random, layers, draw) > 0 for random in randoms) / verdicts


# Tensors: ``[rows, width]`` in float64 that fit bfloat16.


def nearest(x: Array) -> Array:
    stored: Array = x.astype(np.float32).astype(numpy_dtype(DTYPE)).astype(np.float64)
    return stored


def towards_zero(x: Array) -> Array:
    near = nearest(x)
    _, exponent = np.frexp(near)
    lower: Array = np.where(np.abs(near) > np.abs(x), near - np.sign(near) * np.ldexp(EPS / 2, exponent), near)
    return lower


def tally(golden: Array, candidate: Array) -> Tally:
    """Both, compared with the defaults."""
    g, c = (x.astype(np.float32).astype(numpy_dtype(DTYPE)) for x in (golden, candidate))
    rows = np.arange(len(g))
    keys = np.stack([rows * 0, rows * 0, rows], axis=1)
    result = Tally()
    compare_rows(result, g, c, (DTYPE, DTYPE), DEFAULTS[DTYPE], np.abs, lambda: (keys, rows, rows))
    return result


def norm(x: Array, residual: Array, weight: Array, cast: Callable[[Array], Array], factor: float = 1.0) -> Array:
    """A fused sum and norm that casts three times, off by a factor before the last cast."""
    total = cast(x + residual)
    scaled = cast(total / np.sqrt(np.mean(total * total, axis=1, keepdims=True) + 1e-6))
    return cast(scaled * weight * factor)


def norms(random: Random, factor: float = 1.0) -> Tally:
    """Golden truncates, the candidate rounds to nearest."""
    x, residual = (nearest(random.standard_normal((ROWS, WIDTH)) * random.uniform(0.5, 2)) for _ in range(2))
    weight = nearest(1 + random.uniform(0.05, 0.4) * random.standard_normal(WIDTH))
    return tally(norm(x, residual, weight, towards_zero), norm(x, residual, weight, nearest, factor))


def casts(random: Random, cast: Callable[[Array], Array] = nearest, factor: float = 1.0) -> Tally:
    """One cast of the same values, off by a factor; golden rounds to nearest."""
    x = random.standard_normal((ROWS, WIDTH))
    return tally(nearest(x), cast(x * factor))


def doubly(random: Random) -> Tally:
    """Golden rounds once, the candidate an intermediate result too."""
    x, y = (random.standard_normal((ROWS, WIDTH)) for _ in range(2))
    return tally(nearest(x * y), nearest(nearest(x) * y))


Make = Callable[[Random], Tally]
IDENTICAL: Make = casts
FAULTS: Mapping[str, tuple[Make, Make]] = {
    "truncates; the others are identical": (IDENTICAL, lambda r: casts(r, towards_zero)),
    "truncates; the others round twice": (doubly, lambda r: casts(r, towards_zero)),
    "1 + 2^-10 too large; the others are identical": (IDENTICAL, lambda r: casts(r, factor=1 + 2**-10)),
    "1.002 too large; the others are identical": (IDENTICAL, lambda r: casts(r, factor=1.002)),
    "1.002 too large; all truncate": (
        lambda r: casts(r, towards_zero), lambda r: casts(r, towards_zero, factor=1.002),
    ),
    "norm: +0.8 ulp pulled back to +0.24": (norms, lambda r: norms(r, 0.9969)),
    "norm: +0.8 ulp pushed to +1.15": (norms, lambda r: norms(r, 1.002)),
    "rounds twice; the others are identical": (IDENTICAL, doubly),
}  # fmt: skip
SHARED: Mapping[str, Make] = {
    "a truncating cast": lambda r: casts(r, towards_zero),
    "a fused norm that truncates": norms,
    "rounds twice": doubly,
    "a factor of 1 + 2^-10": lambda r: casts(r, factor=1 + 2**-10),
    "a factor of 1.002": lambda r: casts(r, factor=1.002),
}


def named(siblings: Sequence[Tally]) -> list[bool]:
    """Which of them are biased, judged among each other."""
    judge_leans(siblings, DTYPE, SIGN_ULP)
    return [one.error_class == "biased" for one in siblings]


def power(kind: str, layers: int, trials: int) -> tuple[float, float]:
    """Share of trials in which the one faulty sibling is named, and in which any other is."""
    honest, faulty = FAULTS[kind]
    found = []
    for trial in range(trials):
        random = np.random.default_rng([layers, trial])
        found.append(named([*(honest(random) for _ in range(layers - 1)), faulty(random)]))
    return float(np.mean([f[-1] for f in found])), float(np.mean([any(f[:-1]) for f in found]))


def of_all(kind: str, layers: int, trials: int) -> float:
    """Share of siblings that are named where all of them are alike."""
    make = SHARED[kind]
    randoms = (np.random.default_rng([layers, trial]) for trial in range(trials))
    return float(np.mean([named([make(random) for _ in range(layers)]) for random in randoms]))


def main(verdicts: int) -> None:
    sizes = (4, 8, 24, 48)
    print(f"Honest verdicts with an alarm, of {verdicts} each (of {verdicts // 10} from 24 layers on)\n")
    rows = []
    for name, draw in DISTRIBUTIONS.items():
        shares = [false_alarms(verdicts if n < 24 else verdicts // 10, n, draw) for n in sizes]
        rows.append([name, *(f"{share:.2g}" for share in shares)])
    print(tables.table(["siblings are distributed", *(f"{n} layers" for n in sizes)], rows))
    print(
        "\nA fault in one of as many siblings: share of 40 trials in which it is named, and in which another is\n"
    )
    rows = []
    for kind in FAULTS:
        shares = [power(kind, n, 40) for n in LAYERS]
        rows.append([kind, *(f"{hit:.0%}" + (f" ({other:.0%})" if other else "") for hit, other in shares)])
    print(tables.table(["fault", *map(str, LAYERS)], rows))
    print("\nThe same in all siblings: share of them that is named\n")
    kinds = [[kind, *(f"{of_all(kind, n, 40):.0%}" for n in (1, 2, 3, 4, 8, 24))] for kind in SHARED]
    print(tables.table(["what all do", "1", "2", "3", "4", "8", "24"], kinds))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
