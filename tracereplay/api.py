"""Recording, replaying and comparing in Python: what the verbs do, without a terminal.

`tracereplay` has these by name; `own.recording`, which records what one's own Python runs, is beside them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tracereplay.alone.replay import Selection, replay_isolated
from tracereplay.comparator import Policy, compare_traces, load_policy
from tracereplay.comparator.judging.outcome import judge_unrun
from tracereplay.environments import load_engine
from tracereplay.errors import OtherWeights, UsageError
from tracereplay.gate import check_request
from tracereplay.gate.adapters import ADAPTERS
from tracereplay.launch import Launchable, jobs
from tracereplay.launch.asking import options_of
from tracereplay.passes import RECORD
from tracereplay.recorder.options import OPERATOR
from tracereplay.storage.atomic import local_path
from tracereplay.storage.files import is_url
from tracereplay.store.cache import addressed, kept
from tracereplay.trace import Trace, open_trace
from tracereplay.trace.place import new_trace
from tracereplay.verdict import Mode, Verdict
from tracereplay.workload import Workload

__all__ = ["compare", "record", "replay"]

Report = Callable[[str], None]
AnyPath = str | os.PathLike[str]
_MODES: tuple[Mode, ...] = ("injected", "rerun", "isolated")


def record(
    engine: str | Launchable, workload: Workload, out: AnyPath, *, sites: str | Iterable[str] = (),
    sides: str | Iterable[str] = "in,out", level: str = OPERATOR, check_writes: bool = True,
    tokens: str | None = None, every: int = 1, max_steps: int | None = None, max_bytes: int | None = None,
    when_behind: str = "block", with_weights: bool = False, check_observer: bool = False,
    encrypt_to: str | Iterable[str] = (), withhold: str | None = None, withhold_key: AnyPath | None = None,
    log: AnyPath | None = None, force: bool = False, report: Report = lambda line: None,
) -> Trace:  # fmt: skip
    """Generates under an engine, and records every operator's inputs and outputs: ``tracereplay record``.

    >>> work = tracereplay.Workload.of("model", ["Hello"], max_tokens=4)
    >>> trace = tracereplay.record("toy", work, "hello.trace")
    >>> len(trace), trace.complete
    (4, True)

    Args:
        engine: the name of a registered engine, or the engine.
        workload: what it generates.
        out: trace to write.
        with_weights: copy the checkpoint's tensors into the trace too.
        check_observer: also generate in an engine without taps, and record what recording changed.
        log: file for the engine's output.
        force: replace a trace at ``out``, as soon as the new one is complete.
        report: called with each line of progress.

    The others are the options of the same names.

    Raises:
        UsageError, EngineFailed, RecordingIncomplete: see `launch.jobs.record`.
    """
    options = options_of(
        when_behind=when_behind, level=level, check_writes=check_writes, max_steps=max_steps, max_bytes=max_bytes,
        sites=sites, sides=sides, tokens=tokens, every=every, encrypt_to=encrypt_to, withhold=withhold,
        withhold_key=withhold_key,
    )  # fmt: skip
    launched = _engine(engine)
    with new_trace(local_path(out), force=force, inputs=[Path(workload.model)], tell=report) as place:
        jobs.record(
            launched, workload, place.path, check_observer=check_observer, log=_path(log), options=options,
            weights=with_weights, report=report,
        )  # fmt: skip
    return open_trace(place.path)


def replay(
    golden: Trace | AnyPath, engine: str | Launchable, *, mode: Mode = "injected",
    settings: Mapping[str, Any] | None = None, lora: Mapping[str, AnyPath] | None = None,
    model: AnyPath | None = None, site: str | None = None, kernel: str | None = None,
    out: AnyPath | None = None, policy: Policy | AnyPath | None = None, strict: bool = False,
    oracle: bool = False, other_weights: bool = False, log: AnyPath | None = None, force: bool = False,
    report: Report = lambda line: None,
) -> Verdict:  # fmt: skip
    """Replays a golden trace under another engine, and names the operator that differs: ``tracereplay replay``.

    >>> verdict = tracereplay.replay("golden.trace", "toy", settings={"flaw": "model.layers.1.mlp.act_fn:scale"})
    >>> verdict.verdict, verdict.first_divergence.site
    ('diverged', 'model.layers.1.mlp.act_fn')

    Args:
        golden: the trusted recording; a path, a URL, or a trace that is open.
        engine: the name of a registered engine, or the engine.
        mode: ``injected`` finds the operator, ``rerun`` where generations part, ``isolated`` runs recorded
            operators one by one, without a model.
        settings: engine arguments that override golden's.
        lora: directories of adapters that requests name.
        model: checkpoint directory, if it has moved.
        site, kernel: globs of what is replayed in isolation.
        out: where the candidate's trace is kept; None: it is not.
        policy: tolerances, or their file.
        strict: every bit must match.
        oracle: compare both sides with float64 references, too.
        other_weights: continue if the checkpoint differs from golden's.
        log: file for the engine's output.
        force: replace a trace at ``out``.
        report: called with each line of progress.

    Raises:
        UsageError, EngineFailed, TraceError: see `launch.jobs.replay` and `alone.replay.replay_isolated`.
    """
    launched, rules = _engine(engine), _policy(policy, strict)
    given = {**(settings or {}), **({ADAPTERS: {n: str(d) for n, d in lora.items()}} if lora else {})}
    directory = _path(model)
    if mode not in _MODES:
        raise UsageError(f"--mode {mode} is not known; give {', '.join(_MODES)}.")
    with _recorded(golden, report) as path:
        if mode == "isolated":
            if given or log is not None or other_weights:
                raise UsageError(
                    "Isolated replay starts no engine; leave out settings, lora, log and other_weights."
                )
            make: Callable[[Path], object] = partial(
                replay_isolated, launched, path, selection=Selection(site or "*", kernel), model=directory,
                reference=oracle, report=report,
            )  # fmt: skip
        else:
            if site or kernel:
                raise UsageError("--site and --kernel select calls to replay in isolation; add --mode isolated.")
            with open_trace(path) as trace:
                if RECORD in trace.passes:
                    check_request(trace, given, directory)
            make = partial(
                jobs.replay, launched, path, settings=given, model=directory, injected=mode == "injected",
                other_weights=other_weights, log=_path(log), report=report,
            )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="tracereplay-") as folder, open_trace(path) as trace:
            new = Path(folder) / "candidate.trace" if out is None else local_path(out)
            try:
                with new_trace(new, force=force, inputs=trace.read_from, tell=report) as place:
                    make(place.path)
            except OtherWeights as found:
                return judge_unrun(trace, launched.name, found, mode)
            report("Comparing")
            return addressed(compare_traces(path, place.path, rules, oracle=oracle, model=directory))


def compare(
    golden: Trace | AnyPath, candidate: Trace | AnyPath, *, policy: Policy | AnyPath | None = None,
    strict: bool = False, oracle: bool = False, model: AnyPath | None = None,
) -> Verdict:  # fmt: skip
    """Compares two traces; no engine is started: ``tracereplay compare``.

    >>> verdict = tracereplay.compare("golden.trace", "candidate.trace")
    >>> verdict.verdict, verdict.matches
    ('match', True)

    Args:
        golden: the trusted recording; a path, a URL, or a trace that is open.
        candidate: a replay of it, or another recording of the same workload.
        policy: tolerances, or their file.
        strict: every bit must match.
        oracle: compare both sides with float64 references, too.
        model: the checkpoint whose weights these need, if it has moved.

    Raises:
        UsageError, TraceError: see `comparator.compare_traces`.
    """
    return compare_traces(golden, candidate, _policy(policy, strict), oracle=oracle, model=_path(model))


def _engine(engine: str | Launchable) -> Launchable:
    return load_engine(engine) if isinstance(engine, str) else engine


def _policy(policy: Policy | AnyPath | None, strict: bool) -> Policy:
    rules = Policy() if policy is None else policy if isinstance(policy, Policy) else load_policy(Path(policy))
    return rules.made_strict() if strict else rules


def _path(path: AnyPath | None) -> Path | None:
    return None if path is None else Path(path)


@contextmanager
def _recorded(golden: Trace | AnyPath, report: Report) -> Iterator[Path]:
    """Where an engine reads it; one at a URL is kept on this machine meanwhile."""
    place = golden.path if isinstance(golden, Trace) else os.fspath(golden)
    if is_url(place):
        with kept(os.fspath(place), report) as path:
            yield path
    else:
        yield golden.local_path() if isinstance(golden, Trace) else Path(place)
