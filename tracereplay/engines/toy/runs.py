"""Makes a workload, records it, and replays the recording, with the toy engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tracereplay.cancellation import Cancellation
from tracereplay.engines.naming import map_of
from tracereplay.engines.roles import with_roles
from tracereplay.engines.toy.engine import Engine
from tracereplay.engines.toy.family import TOY
from tracereplay.engines.toy.flaws import Flaw
from tracereplay.engines.toy.golden import Cancelled, Golden, Source, golden_tokens
from tracereplay.engines.toy.names import Naming
from tracereplay.engines.toy.numerics import Rounding
from tracereplay.engines.toy.recorder import Recorder
from tracereplay.engines.toy.weights import Update
from tracereplay.gate import applied_settings
from tracereplay.passes import CANCELLED, INJECTED, RECORD, RERUN
from tracereplay.trace import Trace, TraceDirectory, open_trace
from tracereplay.workload import Prompt, Workload

__all__ = ["golden_for", "record", "replay", "workload"]


def workload(
    prompts: Sequence[Sequence[int]] = ((5, 6, 7, 8, 9), (20, 21, 22), (5, 6, 7, 40)),
    *,
    max_tokens: int = 8,
    model: str = "toy",
    sampling: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Workload:
    """A small workload for the toy engine; ``model`` names its weights, ``settings`` may hold ``dtype``."""
    given = {"max_tokens": max_tokens, "temperature": 0.0, "logprobs": 0, **(sampling or {})}
    return Workload(model, tuple(Prompt(tuple(ids), None, given) for ids in prompts), settings)


def record(
    work: Workload,
    path: Path,
    *,
    flaw: Flaw | Sequence[Flaw] | None = None,
    rounding: Rounding = "once",
    max_rows: int | None = None,
    tensor_parallel: int = 1,
    update: Update | None = None,
    naming: Naming = "fused",
) -> Path:
    """Generates ``work`` and records it.

    Args:
        work: prompts need token ids.
        path: trace to create.
        flaw: a fault to plant, or several.
        rounding: the "engine version": ``once`` rounds each operator's result; ``truncate`` does so towards
            zero, as some engines do on CPUs; ``twice`` also rounds intermediate results, computes
            logits of all rows and shares the prompt between samples.
        max_rows: rows a step may hold; longer prompts are prefilled in chunks. None: no limit.
        tensor_parallel: 1 or 2 ranks.
        update: of the weights, in the middle of the pass.
        naming: ``fused``, named as in an engine's Llama; or ``split``, under other names, with each projection an
            operator of its own, and norms that are given the sum of x and residual. Flaws are planted by these
            names.

    Raises:
        WorkloadError: a prompt has no token ids, or one that is not in the vocabulary.
    """
    engine = Engine(work, rounding, max_rows, tensor_parallel, flaw, update=update, naming=naming)
    directory = TraceDirectory(path, _run("recording", engine, None))
    recorder = Recorder(path, RECORD, engine.numerics, engine.ranks, None, engine.sites)
    directory.add_pass(RECORD, engine.generate(recorder, None))
    directory.complete()
    return path


def replay(
    golden: Path,
    path: Path,
    *,
    flaw: Flaw | Sequence[Flaw] | None = None,
    rounding: Rounding = "once",
    max_rows: int | None = None,
    tensor_parallel: int = 1,
    settings: Mapping[str, Any] | None = None,
    model: str | None = None,
    passes: Sequence[str] = (RERUN, INJECTED),
    noise: float = 0.0,
    cancel: tuple[Path, Cancellation] | None = None,
    update: Update | None = None,
    naming: Naming = "fused",
) -> Path:
    """Runs the workload of ``golden`` with forced tokens, in a free and an injected pass.

    Args:
        golden: trace to replay.
        path: trace to create.
        settings: override the golden workload's settings.
        model: other weights than golden's.
        passes: of ``rerun``, ``injected``, ``injectedtwice`` and ``cancelled``.
        noise: largest relative size of an error that no two passes share, in every linear layer.
        cancel: for the pass ``cancelled``, the trace of an injected pass of the same engine, and what of its
            own errors to subtract.

    The other arguments are those of `record`.
    """
    trace = open_trace(golden)
    prompts = tuple(Prompt(p.token_ids, p.text, p.sampling) for p in trace.run.prompts)
    name = "toy" if trace.run.requested is None else trace.run.requested.words()["model"]
    work = Workload(name, prompts, {**applied_settings(trace), **(settings or {})}, trace.run.weights)
    if model is not None:
        work = replace(work, model=model)
    engine = Engine(work, rounding, max_rows, tensor_parallel, flaw, noise, update, naming)
    directory = TraceDirectory(path, _run("replay", engine, trace.digest()))
    for name in passes:
        with ExitStack() as traces:
            source = _source(name, trace, engine, cancel, traces)
            recorder = Recorder(path, name, engine.numerics, engine.ranks, source, engine.sites)
            directory.add_pass(name, engine.generate(recorder, golden_tokens(trace)))
    directory.complete()
    trace.close()
    return path


def _source(
    name: str, trace: Trace, engine: Engine, cancel: tuple[Path, Cancellation] | None, traces: ExitStack
) -> Source | None:
    if name == RERUN:
        return None
    golden = golden_for(trace, engine)
    if name != CANCELLED:
        return golden
    assert cancel is not None, "say what to cancel"
    injected = traces.enter_context(open_trace(cancel[0]))
    return Cancelled(golden, Golden(injected, INJECTED), cancel[1], engine.numerics)


def golden_for(trace: Trace, engine: Engine) -> Golden:
    """The values of a recording, as ``engine`` names its operators."""
    return Golden(trace, site_map=map_of(with_roles(trace.sites(RECORD), TOY), engine.sites))


def _run(kind: str, engine: Engine, golden: str | None) -> dict[str, Any]:
    described = {
        "tracereplay": version("tracereplay"), "level": "operator", "kind": kind, "engine": engine.describe(),
        "workload": replace(engine.work, weights=engine.weights.digest).as_dict(), "notes": [],
    }  # fmt: skip
    return described if golden is None else {**described, "golden": golden}
