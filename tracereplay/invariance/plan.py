"""What is varied: the passes of each engine start, what each is compared with, and what shows that it was varied.

    start            passes                                              compared with
    as given         base (each request alone), repeat                   base
                     batch: in groups, all together                      base
                     order: all together, reversed and shuffled          all together
                     cache: cold, then warm                              base
    other arguments  chunks, cache (where it is off), graphs, tp: alone  base

The base run records each request alone, in a free run. In all others its tokens are forced, and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracereplay.comparator.numbers.tables import PassIndex
from tracereplay.engines.known import family_named
from tracereplay.engines.request import Serving
from tracereplay.errors import UsageError
from tracereplay.launch import Launchable
from tracereplay.launch.variations import Variation, named_variation
from tracereplay.trace.run import Run
from tracereplay.verdict.invariance import REPEAT

__all__ = ["BY_DEFAULT", "NAMES", "TOGETHER", "Idle", "Pass", "Plan", "Start", "alone", "plan"]

NAMES = ("batch", "order", "chunks", "cache", "graphs", "tp")
BY_DEFAULT = ("batch", "order", "chunks", "cache", "graphs")  # tp needs a second device, or other cores
TOGETHER = "all together"  # the run that those of another order are compared with

# Why a pass varied nothing, as its steps show; None if it did.
Idle = Callable[[PassIndex, PassIndex], "str | None"]


def never_idle(reference: PassIndex, run: PassIndex) -> str | None:
    """Of passes whose engine was started otherwise."""
    return None


def same_schedule(reference: PassIndex, run: PassIndex) -> str | None:
    """Of passes that must compose their steps otherwise."""
    if not reference.steps.same_rows(run.steps):
        return None
    return "The engine composed its steps as before (max_num_seqs and max_num_batched_tokens bound them)."


def same_padding(reference: PassIndex, run: PassIndex) -> str | None:
    """Of a pass whose CUDA graphs must have other sizes."""
    if reference.padding != run.padding:
        return None
    return "The engine padded no step otherwise; its graphs have the sizes that they had."


def nothing_cached(reference: PassIndex, run: PassIndex) -> str | None:
    """Of a pass that must find rows in the prefix cache."""
    if run.steps.rows < reference.steps.rows:
        return None
    return (
        "No row was taken from the prefix cache; it keeps whole blocks only, so give longer prompts, or a smaller "
        "block_size."
    )


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass.

    Args:
        what: it varies; empty for a run that others are compared with only.
        value: of that.
        serving: how requests are handed over.
        against: the name under which the run is kept that it is compared with; empty for the base run.
        idle: whether it varied anything.
        kept_as: the name under which others are compared with this one.
    """

    what: str
    value: int | str
    serving: Serving
    against: str = ""
    idle: Idle = never_idle
    kept_as: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """One engine start.

    Args:
        variation: of how it is started.
        passes: in order.
    """

    variation: Variation
    passes: tuple[Pass, ...]


@dataclass(slots=True)
class Plan:
    """Everything to run.

    Args:
        passes: of the first start, after the base run.
        starts: further ones.
        values: of each thing to vary, the base run's first.
        idle: what cannot be varied, and why.
    """

    passes: list[Pass] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    values: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    idle: dict[str, str] = field(default_factory=dict)


def alone(requests: int, cleared: str = "group") -> Serving:
    """Each request by itself."""
    return Serving(tuple((number,) for number in range(requests)), cleared)  # type: ignore[arg-type]


def plan(names: Sequence[str], engine: Launchable, run: Run, given: Mapping[str, Any], seed: int) -> Plan:
    """What to run after the base run.

    Args:
        names: of what is to be varied, some of `NAMES`.
        engine: what was started.
        run: the base run's.
        given: all engine arguments of it.
        seed: of the shuffled order.

    Raises:
        UsageError: there is no such thing to vary.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise UsageError(f"There is nothing named {unknown[0]!r} to vary; there are {', '.join(NAMES)}.")
    found, count = Plan(), len(run.prompts)
    found.values[REPEAT] = ("once", "again")
    found.passes.append(Pass(REPEAT, "again", alone(count)))
    if "cache" in names:
        _cache(found, run, count)
    if "batch" in names or "order" in names:
        _batch_and_order(found, names, count, seed)
    if "chunks" in names:
        _chunks(found, run, count)
    if "graphs" in names:
        _graphs(found, engine, run, given, count)
    if "tp" in names:
        _tp(found, engine, run, count)
    found.values = {name: found.values[name] for name in (REPEAT, *NAMES) if name in found.values}
    return found


def _cache(found: Plan, run: Run, count: int) -> None:
    """Twice in one engine; the second time what the first has left is not computed again."""
    cold = Pass("cache", "cold", alone(count, "pass"))
    warm = Pass("cache", "warm", alone(count, "never"), idle=nothing_cached)
    found.values["cache"] = ("cold", "warm")
    if run.engine_facts("settings").get("enable_prefix_caching"):
        found.passes += [cold, warm]
    else:
        found.starts.append(Start(Variation("cache", {"enable_prefix_caching": True}), (cold, warm)))


def _batch_and_order(found: Plan, names: Sequence[str], count: int, seed: int) -> None:
    every = tuple(range(count))
    if count < 2:
        reason = "The workload has one request; batches and their order can be varied from two on."
        found.idle |= {name: reason for name in ("batch", "order") if name in names}
        found.values |= {name: () for name in ("batch", "order") if name in names}
        return
    sizes = sorted({2, count})
    if "batch" in names:
        found.values["batch"] = (1, *sizes)
        for size in sizes[:-1]:
            groups = tuple(every[i : i + size] for i in range(0, count, size))
            found.passes.append(Pass("batch", size, Serving(groups, "group"), idle=same_schedule))
    together = Serving((every,), "group")
    if "batch" in names:
        found.passes.append(Pass("batch", count, together, idle=same_schedule, kept_as=TOGETHER))
    else:
        found.passes.append(Pass("", TOGETHER, together, kept_as=TOGETHER))
    if "order" in names:
        orders = {"reversed": every[::-1], f"shuffled, seed {seed}": _shuffled(every, seed)}
        different = {name: order for i, (name, order) in enumerate(orders.items()) if i == 0 or count > 2}
        found.values["order"] = ("as given", *different)
        for name, order in different.items():
            serving = Serving((order,), "group")
            found.passes.append(Pass("order", name, serving, against=TOGETHER, idle=same_schedule))


def _shuffled(every: tuple[int, ...], seed: int) -> tuple[int, ...]:
    """Neither as given nor reversed, where there are at least three."""
    draw, order = random.Random(seed), list(every)
    while tuple(order) in (every, every[::-1]) and len(every) > 2:
        draw.shuffle(order)
    return tuple(order)


def _chunks(found: Plan, run: Run, count: int) -> None:
    variation = named_variation("chunks", run)
    budget = variation.settings["max_num_batched_tokens"]
    resolved = run.engine_facts("settings").get("max_num_batched_tokens")
    found.values["chunks"] = (resolved if isinstance(resolved, int) else "any", budget)
    if variation.idle:
        found.idle["chunks"] = variation.idle.replace("Golden's", "The workload's")
        return
    found.starts.append(Start(variation, (Pass("chunks", budget, alone(count), idle=same_schedule),)))


def _graphs(found: Plan, engine: Launchable, run: Run, given: Mapping[str, Any], count: int) -> None:
    other = family_named(engine.family).other_graphs(run.engine, given, count)
    if isinstance(other, str):
        found.idle["graphs"], found.values["graphs"] = other, ()
        return
    found.values["graphs"] = ("as given", *other)
    for name, settings in other.items():
        start = Start(Variation("graphs", settings), (Pass("graphs", name, alone(count), idle=same_padding),))
        found.starts.append(start)


def _tp(found: Plan, engine: Launchable, run: Run, count: int) -> None:
    ranks = run.engine_facts("settings").get("tensor_parallel_size", 1)
    other = 1 if ranks != 1 else 2
    found.values["tp"] = (ranks, other)
    env = family_named(engine.family).ranks_environment(run.engine, other) if other > 1 else {}
    variation = Variation("tp", {"tensor_parallel_size": other}, env)
    found.starts.append(Start(variation, (Pass("tp", other, alone(count)),)))
