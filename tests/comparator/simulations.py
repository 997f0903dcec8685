"""Honest roundings and planted faults in numpy, to measure tolerances by; prints TOLERANCES.md's tables.

    python tests/comparator/simulations.py

Each simulation gives ``(golden, candidate, dtype)``, both ``[rows, width]`` in storage dtype: one operator
computed on the same inputs by two engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tracereplay.comparator.numbers.dtypes import eps, widen
from tracereplay.comparator.numbers.leans import judge_leans
from tracereplay.comparator.numbers.metrics import trimmed_rms
from tracereplay.comparator.numbers.tally import BIAS_ULP, BIAS_Z, SIGN_ULP, Tally, compare_rows
from tracereplay.comparator.numbers.tolerance import DEFAULTS, PEAKS
from tracereplay.dtypes import numpy_dtype

Array = npt.NDArray[Any]
Pair = tuple[Array, Array, str]


def rounded(x: Array, dtype: str) -> Array:
    """To the nearest value of ``dtype``, as float64."""
    stored: Array = x.astype(np.float64).astype(np.float32).astype(numpy_dtype(dtype)).astype(np.float64)
    return stored


def pair(golden: Array, candidate: Array, dtype: str) -> Pair:
    """Both rounded to nearest in storage dtype."""
    g, c = (x.astype(np.float32).astype(numpy_dtype(dtype)) for x in (golden, candidate))
    return g, c, dtype


def activations(random: np.random.Generator, rows: int, width: int, kind: str, dtype: str) -> Array:
    """Rows as models have them: ``normal``, ``heavy`` tailed, or with ``outliers``.

    Outliers are channels a thousand times larger that keep their sign, as the massive activations of trained
    models do.
    """
    x = random.standard_normal((rows, width))
    if kind == "heavy":
        x = random.standard_t(3, (rows, width))
    if kind == "outliers":
        channels = random.permutation(width)[: max(1, width // 256)]
        x[:, channels] = 1000 * random.choice([-1, 1], len(channels)) * (1 + 0.2 * x[:, channels])
    return rounded(x, dtype)


def rmsnorm(random: np.random.Generator, rows: int, width: int, kind: str, dtype: str) -> Pair:
    x = activations(random, rows, width, kind, dtype)
    weight = rounded(1 + 0.3 * random.standard_normal(width), dtype)
    scaled = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-6)
    return pair(rounded(scaled, dtype) * weight, scaled * weight, dtype)


def silu_and_mul(random: np.random.Generator, rows: int, width: int, kind: str, dtype: str) -> Pair:
    gate, up = (activations(random, rows, width, kind, dtype) for _ in range(2))
    silu = gate / (1 + np.exp(-np.clip(gate, -500, None)))
    return pair(rounded(silu, dtype) * up, silu * up, dtype)


def rotary(random: np.random.Generator, rows: int, width: int, kind: str, dtype: str) -> Pair:
    head = min(128, width)
    x = activations(random, rows, width, kind, dtype).reshape(rows, -1, head)
    angles = np.arange(rows)[:, None] * 10000.0 ** (-np.arange(head // 2) / (head // 2))
    cos, sin = (rounded(f(angles), dtype)[:, None, :] for f in (np.cos, np.sin))
    first, second = np.split(x, 2, axis=-1)
    once = [first * cos - second * sin, second * cos + first * sin]
    parts = [rounded(v, dtype) for v in (first * cos, second * sin, second * cos, first * sin)]
    twice = [parts[0] - parts[1], parts[2] + parts[3]]
    return pair(*(np.concatenate(v, axis=-1).reshape(rows, width) for v in (twice, once)), dtype)


def attention(random: np.random.Generator, rows: int, width: int, kind: str, dtype: str) -> Pair:
    head = min(64, width)
    heads = width // head
    q, k, v = (activations(random, rows, width, kind, dtype).reshape(rows, heads, head) for _ in range(3))
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(head)
    scores = np.where(np.tri(rows, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1)
    exact, coarse = (
        (np.einsum("hij,jhd->ihd", p, v) / total.T[..., None]).reshape(rows, width)
        for p in (weights, rounded(weights, dtype))
    )
    return pair(coarse, exact, dtype)


def _sequential(x: Array, weight: Array) -> Array:
    """``x @ weight`` in float32, one product after the other: the least exact order there is."""
    total = np.zeros((len(x), weight.shape[1]), np.float32)
    for i in range(len(weight)):
        total += x[:, i, None] * weight[i]
    return total


def gemm(random: np.random.Generator, rows: int, width: int, kind: str, dtype: str, depth: int = 4096) -> Pair:
    """Two orders of summation, accumulated in float32: one after the other, and as BLAS does."""
    x = activations(random, rows, depth, kind, dtype).astype(np.float32)
    weight = rounded(random.standard_normal((depth, width)) * depth**-0.5, dtype).astype(np.float32)
    return pair(_sequential(x, weight), x @ weight, dtype)


def partials(random: np.random.Generator, rows: int, width: int, kind: str, dtype: str, depth: int = 1024) -> Pair:
    """A row-parallel layer on one rank, and on two whose rounded results are added."""
    x = activations(random, rows, depth, kind, dtype)
    weight = rounded(random.standard_normal((depth, width)) * depth**-0.5, dtype)
    halves = [rounded(a @ b, dtype) for a, b in zip(np.split(x, 2, 1), np.split(weight, 2), strict=True)]
    return pair(x @ weight, halves[0] + halves[1], dtype)


def stored(x: Array, dtype: str, *, truncate: bool = False) -> Array:
    """Rounded to nearest or truncated, as float32; fast enough for a whole network."""
    x = np.asarray(x, np.float32)
    if dtype == "float32":
        return x
    if not truncate:
        near: Array = x.astype(numpy_dtype(dtype)).astype(np.float32)
        return near
    kept = np.uint32(0xFFFFFFFF << {"bfloat16": 16, "float16": 13}[dtype] & 0xFFFFFFFF)
    return (x.view(np.uint32) & kept).view(np.float32)


# What a fused kernel of experts truncates; all else stays in float32. vLLM 0.32.0 leans as the first does.
FUSED = {"activation, sum": ("activation", "sum"), "each output too": ("activation", "output", "sum")}


def experts(
    random: np.random.Generator, rows: int, width: int, kind: str, dtype: str, chosen: int = 2, inner: int = 256,
    gain: float = 1.0, fused: str = "activation, sum", scale: float = 1.0, routed: float = 1.0,
) -> Pair:  # fmt: skip
    """Eight experts of which each row is sent to some: every step rounded, and a fused kernel that truncates.

    Golden rounds gate and up, SiLU, its product with up, the output of each expert and their weighted sum, as
    vLLM 0.18.1 does without a kernel.

    Args:
        chosen: experts of each row.
        inner: width between the two projections.
        gain: standard deviation of gate and up, which depends on the model.
        fused: what the candidate truncates, of `FUSED`.
        scale: planted: a factor on the candidate's sum before it is truncated.
        routed: planted: a factor on the weight that the candidate gives to each row's first expert.
    """
    count = 8
    x = activations(random, rows, width, kind, dtype).astype(np.float32)
    gates, ups = (
        stored(gain * random.standard_normal((count, width, inner)) * width**-0.5, dtype) for _ in range(2)
    )
    downs = stored(random.standard_normal((count, inner, width)) * inner**-0.5, dtype)
    logits = random.standard_normal((rows, count))
    order = np.argsort(-logits, axis=1)[:, :chosen]
    weights = np.exp(np.take_along_axis(logits, order, axis=1))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    wrong = weights * np.where(np.arange(chosen) == 0, routed, 1.0).astype(np.float32)
    sums = np.zeros((2, rows, width), np.float32)

    def plain(_: str, v: Array) -> Array:
        return stored(v, dtype)

    def kernel(step: str, v: Array) -> Array:
        return stored(v, dtype, truncate=True) if step in FUSED[fused] else v

    for expert in range(count):
        mine, slot = np.nonzero(order == expert)
        gate, up = x[mine] @ gates[expert], x[mine] @ ups[expert]
        for total, convert, share in ((sums[0], plain, weights), (sums[1], kernel, wrong)):
            g, u = convert("gate", gate), convert("up", up)
            silu = convert("silu", g / (1 + np.exp(-np.clip(g, -80, None))))
            output = convert("output", convert("activation", silu * u) @ downs[expert])
            total[mine] += share[mine, slot][:, None] * output
    golden, candidate = plain("sum", sums[0]), kernel("sum", np.float32(scale) * sums[1])
    return golden.astype(numpy_dtype(dtype)), candidate.astype(numpy_dtype(dtype)), dtype


def quotients(found: Pair) -> Array:
    """Error over allowance of every element, with the dtype's defaults."""
    golden, candidate, dtype = found
    a, b = DEFAULTS[dtype]
    g, c = widen(golden, dtype).astype(np.float64), widen(candidate, dtype).astype(np.float64)
    quotient: Array = np.abs(c - g) / (eps(dtype) * (a * np.abs(g) + b * trimmed_rms(np.abs(g))[:, None]))
    return quotient


VERDICT_ROWS = 32 * 1000  # of experts: 32 layers, 1000 tokens
ALARM_RATE = 1e-3  # false alarms that single elements may cause, for each verdict


def needed_peak(largest: Array, tail: int, errors: float = 0.0) -> float:
    """What the largest quotient of a row exceeds at `ALARM_RATE` in `VERDICT_ROWS` rows.

    An error near zero is the sum of many, so that it is normal and the tail of its square exponential: the mean
    excess of the largest squares says how long it is.

    Args:
        largest: quotient of each row.
        tail: how many of the largest say it.
        errors: standard errors of the mean excess to add.
    """
    squares = np.sort(largest)[-tail - 1 :] ** 2
    excess = (squares[1:] - squares[0]).mean() * (1 + errors / np.sqrt(tail))
    further = np.log(tail / len(largest) * VERDICT_ROWS / ALARM_RATE)
    return float(np.sqrt(squares[0] + excess * further))


def truncated(
    random: np.random.Generator, rows: int, width: int, kind: str, dtype: str, offset: float = 0.0
) -> Pair:
    """Rounded to nearest, and towards zero; ``offset`` is the mean of the values."""
    exact = offset + random.standard_normal((rows, width))
    return pair(rounded(exact, dtype), towards_zero(exact, dtype), dtype)


def scaled(random: np.random.Generator, rows: int, width: int, factor: float, dtype: str) -> Pair:
    """A factor that is off, before the rounding."""
    exact = random.standard_normal((rows, width))
    return pair(exact, exact * factor, dtype)


def floored(random: np.random.Generator, rows: int, width: int, kind: str, dtype: str) -> Pair:
    """Rounded to nearest, and towards minus infinity."""
    exact = random.standard_normal((rows, width))
    lower = np.where(exact > 0, towards_zero(exact, dtype), from_zero(exact, dtype))
    return pair(rounded(exact, dtype), lower, dtype)


def truncating(random: np.random.Generator, rows: int, width: int, kind: str, dtype: str) -> Pair:
    """A fused residual sum and RMSNorm that truncates three times, and one that rounds three times.

    vLLM 0.8.5 converts to bfloat16 so on CPUs.
    """
    x, residual = (activations(random, rows, width, kind, dtype) for _ in range(2))
    weight = rounded(1 + 0.3 * random.standard_normal(width), dtype)

    def norm(convert: Callable[[Array, str], Array]) -> Array:
        total = convert(x + residual, dtype)
        scaled = convert(total / np.sqrt(np.mean(total * total, axis=1, keepdims=True) + 1e-6), dtype)
        return convert(scaled * weight, dtype)

    return pair(norm(towards_zero), norm(rounded), dtype)


def towards_zero(x: Array, dtype: str) -> Array:
    """To the next value of ``dtype`` towards zero, as float64."""
    near = rounded(x, dtype)
    _, exponent = np.frexp(np.maximum(np.abs(near), 1e-30))
    ulp = np.ldexp(eps(dtype) / 2, exponent)
    lower: Array = np.where(np.abs(near) > np.abs(x), near - np.sign(near) * ulp, near)
    return lower


def from_zero(x: Array, dtype: str) -> Array:
    """To the next value of ``dtype`` away from zero, as float64."""
    near, lower = rounded(x, dtype), towards_zero(x, dtype)
    _, exponent = np.frexp(np.maximum(np.abs(lower), 1e-30))
    higher: Array = np.where(near == lower, lower + np.sign(x) * np.ldexp(eps(dtype) / 2, exponent), near)
    return higher


HONEST: dict[str, Callable[..., Pair]] = {
    "RMSNorm": rmsnorm, "SiluAndMul": silu_and_mul, "RotaryEmbedding": rotary, "Attention": attention,
    "GEMM": gemm, "TP2 partials": partials,
}  # fmt: skip


def tally(found: Pair, factors: tuple[float, float] | None = None, peak: float = 1.0) -> Tally:
    """The pair judged with the dtype's defaults; ``peak`` is what a single element may reach."""
    golden, candidate, dtype = found
    rows = np.arange(len(golden))
    keys = np.stack([rows * 0, rows * 0, rows], axis=1)
    result = Tally(peak=peak)
    compare_rows(
        result, golden, candidate, (dtype, dtype), factors or DEFAULTS[dtype], np.abs, lambda: (keys, rows, rows)
    )
    return result


def shared(found: Tally) -> str:
    """Its class where its lean is a convention of the engines."""
    return replace(found, sign_limit=SIGN_ULP).error_class


def needed_b(found: Pair, a: float) -> float:
    """The smallest ``b`` that passes at this ``a``."""
    golden, candidate, dtype = found
    g, c = widen(golden, dtype).astype(np.float64), widen(candidate, dtype).astype(np.float64)
    over = np.abs(c - g) / eps(dtype) - a * np.abs(g)
    return float(np.max(over / np.maximum(trimmed_rms(np.abs(g)), 1e-300)[:, None]))


def planted_scale(found: Pair, factor: float = 1.03) -> Pair:
    golden, candidate, dtype = found
    wide = widen(candidate, dtype).astype(np.float64)
    return pair(widen(golden, dtype), wide * factor, dtype)


def planted_element(found: Pair, random: np.random.Generator, sigmas: float = 5.0) -> Pair:
    """One ordinary element off by five times the trimmed RMS of its row (less than the row's RMS)."""
    golden, candidate, dtype = found
    g, c = widen(golden, dtype).astype(np.float64), widen(candidate, dtype).astype(np.float64)
    rms = trimmed_rms(np.abs(g))
    row = int(random.integers(len(g)))
    ordinary = np.flatnonzero(np.abs(g[row]) < 4 * rms[row])
    c[row, random.choice(ordinary)] += sigmas * rms[row]
    return pair(g, c, dtype)


def cases(dtype: str, rows: int = 32) -> Iterator[tuple[str, str, int, Pair]]:
    """(operator, distribution, width, pair) over widths and distributions."""
    for name, simulate in HONEST.items():
        for kind in ("normal", "heavy", "outliers"):
            for width in (128, 1024, 4096) if name not in ("GEMM", "TP2 partials") else (256,):
                random = np.random.default_rng([len(name), width, len(kind)])
                yield name, kind, width, simulate(random, rows, width, kind, dtype)


def false_alarms(rows: int, tables: int, dtype: str = "bfloat16", width: int = 128) -> dict[str, float]:
    """Share of tables that the bias test calls biased although neither side leans.

    ``shared``: every row has one common factor, off by up to half an ulp (a reciprocal root rounded to the
    dtype), the worst case for a test over rows. ``RMSNorm``: two honest orders of rounding.
    """
    found = {"shared": 0, "RMSNorm": 0}
    for seed in range(tables):
        random = np.random.default_rng(seed)
        exact = random.standard_normal((rows, width))
        factor = 1 + eps(dtype) * random.uniform(-0.5, 0.5, (rows, 1))
        shared = pair(exact, exact * factor, dtype), rmsnorm(random, rows, width, "normal", dtype)
        for name, drawn in zip(found, shared, strict=True):
            found[name] += tally(drawn).error_class == "biased"
    return {name: count / tables for name, count in found.items()}


LEANS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Array]] = {
    "normal": lambda random, shape: 0.3 * random.standard_normal(shape),
    "t, 3 degrees": lambda random, shape: 0.3 * random.standard_t(3, shape),
    "uniform": lambda random, shape: random.uniform(-0.5, 0.5, shape),
    "two values": lambda random, shape: random.choice([-0.5, 0.5], shape) + 0.01 * random.standard_normal(shape),
}


def score_alarms(leans: str, rows: int, tables: int) -> float:
    """Share of tables called biased whose rows lean at random, without a lean of their own."""
    found, random = 0, np.random.default_rng(rows)
    for _ in range(tables // 100_000):
        drawn = LEANS[leans](random, (100_000, rows))
        mean, error = drawn.mean(axis=1), drawn.std(axis=1, ddof=1) / np.sqrt(rows)
        n = rows - 1
        score = (8 * n + 1) / (8 * n + 3) * np.sqrt(n * np.log1p((mean / error) ** 2 / n))
        found += int(((score >= BIAS_Z) & (np.abs(mean) >= BIAS_ULP)).sum())
    return found / tables


def _tolerances(dtype: str) -> None:
    """One line for each operator: the worst over distributions and widths."""
    a, b = DEFAULTS[dtype]
    print(f"\n**{dtype}**: a = {a:g}, b = {b:g}\n")
    print("| operator | needed b | error / allowance | greatest bias (ulp) | 3 % off | 5 sigma off |")
    print("|---|---|---|---|---|---|")
    for name in HONEST:
        found = [pair for operator, _, _, pair in cases(dtype) if operator == name]
        honest = [tally(pair) for pair in found]
        assert {t.error_class for t in honest} <= {"identical", "rounding"}, name
        scaled = min(tally(planted_scale(pair)).ratio for pair in found)
        element = min(tally(planted_element(pair, np.random.default_rng(7))).ratio for pair in found)
        print(
            f"| {name} | {max(0.0, *(needed_b(pair, a) for pair in found)):.2g} "
            f"| {max(t.ratio for t in honest):.2f} | {max(abs(t.bias[0]) for t in honest):.3f} "
            f"| {scaled:.3g} x | {element:.3g} x |"
        )


SHAPES = ((1, 256, 256), (2, 128, 128), (4, 288, 544), (8, 256, 128), (8, 512, 256), (2, 1024, 512))


def _experts(rows: int = 4_000) -> None:
    """What experts need of single elements, and what is found although they get it."""
    print("\nExperts: limit that a verdict exceeds at 1e-3 (and two standard errors more)\n")
    print("| dtype | truncated | RMS of q | largest q | lean (ulp) | limit | + 2 se |")
    for dtype in ("bfloat16", "float16"):
        for fused in FUSED:
            found = []
            for chosen, width, inner in SHAPES:
                for gain, kind in ((0.1, "normal"), (1.0, "normal"), (1.0, "heavy"), (3.0, "normal")):
                    found.append(_tail(rows, width, kind, dtype, chosen, inner, gain, fused))
            worst = " | ".join(f"{value:.2f}" for value in np.max(found, axis=0))
            print(f"| {dtype} | {fused} | {worst} |", flush=True)
    print("\nExperts with a fault, bfloat16, 1, 2, 4 and 8 for a row: share of 40 tables (64 rows of 512)")
    print("that exceed; with the limit 1 for single elements; that exceed or are biased, by four honest ones\n")
    for fault in PLANTED_IN_EXPERTS:
        print(f"| {fault} | " + " | ".join(_power(chosen, fault) for chosen in (1, 2, 4, 8)) + " |", flush=True)


def _power(chosen: int, fault: dict[str, Any], tables: int = 40) -> str:
    """Shares of tables in which a fault is found."""
    peak = PEAKS["experts", "bfloat16"]

    def drawn(seed: int, **planted: Any) -> Pair:
        return experts(np.random.default_rng([seed, 3]), 64, 512, "normal", "bfloat16", chosen, **planted)

    honest = [tally(drawn(1000 + seed), peak=peak) for seed in range(4)]
    exceeds, before, found = 0, 0, 0
    for seed in range(tables):
        table = drawn(seed, **fault)
        judged = tally(table, peak=peak)
        judge_leans([judged, *map(replace, honest)], "bfloat16", SIGN_ULP)
        exceeds += judged.error_class == "exceeds"
        before += tally(table).error_class == "exceeds"
        found += judged.error_class != "rounding"
    return ", ".join(f"{count / tables:.0%}" for count in (exceeds, before, found))


PLANTED_IN_EXPERTS: tuple[dict[str, Any], ...] = (
    {}, {"scale": 1.02}, {"scale": 0.98}, {"scale": 1.03}, {"scale": 0.97}, {"routed": 1.02}, {"routed": 0.98},
    {"routed": 1.03}, {"routed": 0.97}, {"routed": 1.1}, {"routed": 0.9},
)  # fmt: skip


def _tail(
    rows: int, width: int, kind: str, dtype: str, chosen: int, inner: int, gain: float, fused: str
) -> tuple[float, ...]:
    """RMS of the quotients, the largest, lean, and the limit needed, without and with two standard errors."""
    largest, together, lean = [], 0.0, 0.0
    for seed in range(rows // 2000):
        random = np.random.default_rng([seed, chosen, width])
        drawn = experts(random, 2000, width, kind, dtype, chosen, inner, gain, fused)
        q = quotients(drawn)
        largest.append(q.max(axis=1))
        together = max(together, float(np.sqrt((q**2).mean(axis=1)).max()))
        lean = lean or abs(tally(drawn).bias[0])
    peaks = np.concatenate(largest)
    tail = max(60, len(peaks) // 200)
    return together, float(peaks.max()), lean, needed_peak(peaks, tail), needed_peak(peaks, tail, 2.0)


def main() -> None:
    for dtype in ("bfloat16", "float16", "float32"):
        _tolerances(dtype)
    _experts()
    print("\nTruncation and floor instead of rounding to nearest (17 rows of 1024)\n")
    for dtype in ("bfloat16", "float16", "float32"):
        for simulate in (truncated, floored):
            found = tally(simulate(np.random.default_rng(1), 17, 1024, "normal", dtype))
            lean = f"{found.bias[0]:+.3f} ulp, {found.bias[1]:.1f} standard errors"
            print(f"{simulate.__name__}, {dtype}: {found.error_class}, as a convention {shared(found)}, {lean}")
    print("\nA norm that truncates three times against one that rounds three times\n")
    for kind in ("normal", "heavy", "outliers"):
        for width in (128, 1024, 4096):
            found = tally(truncating(np.random.default_rng(3), 32, width, kind, "bfloat16"))
            print(f"{kind}, {width}: {shared(found)}, {found.ratio:.2f}, {found.bias[0]:+.3f} ulp")
    print("\nA scale before rounding: share of 200 tables (12 rows of 512) that are biased, lean, error\n")
    for dtype in ("bfloat16", "float16"):
        for factor in (1.0002, 1.0005, 1.001, 1.002):
            tables = [tally(scaled(np.random.default_rng(i), 12, 512, factor, dtype)) for i in range(200)]
            share = sum(t.error_class == "biased" for t in tables) / len(tables)
            lean = np.mean([t.bias[0] for t in tables])
            print(f"{dtype}, {factor}: {share:.3g}, {lean:+.2f} ulp, {max(t.ratio for t in tables):.2f}")
    print("\nFalse alarms of the bias test: whole tables\n")
    for rows in (12, 17, 64):
        tables = 4000 if rows < 64 else 1000
        print(f"{rows} rows, {tables} tables: {false_alarms(rows, tables)}")
    print("\nFalse alarms of the bias test: leans alone, a million tables each\n")
    print("| rows | " + " | ".join(LEANS) + " |")
    for rows in (6, 8, 12, 16, 32):
        shares = [score_alarms(name, rows, 1_000_000) for name in LEANS]
        print(f"| {rows} | " + " | ".join(f"{share:.2g}" for share in shares) + " |")


if __name__ == "__main__":
    main()
