"""Recording and replaying on the analyst's side: an engine process and the trace it writes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracereplay.engines.request import Inject, PassRequest
from tracereplay.errors import RecordingIncomplete, WorkloadError
from tracereplay.gate import workload_of
from tracereplay.launch.dtypes import other_dtype
from tracereplay.launch.lengths import as_long_as, check_lengths
from tracereplay.launch.making import engine_header, making, replay_header, run_header
from tracereplay.launch.process import EngineProcess, Launchable
from tracereplay.launch.weights import store_weights
from tracereplay.passes import INJECTED, RECORD, RERUN
from tracereplay.recorder.options import KERNEL, OPERATOR, GraphOptions, Options
from tracereplay.storage.checkpoint import check_model, model_files, read_checkpoint
from tracereplay.trace import Trace, TraceDirectory, open_trace
from tracereplay.trace.sealed import own_recipient
from tracereplay.trace.withheld import Withheld
from tracereplay.workload import Prompt, Workload

__all__ = [
    "observer_effect", "record", "record_pass", "recording_header", "replay", "replay_into", "replay_passes",
    "replayed_level", "tokenized",
]  # fmt: skip

Report = Callable[[str], None]


def record(
    engine: Launchable, workload: Workload, out: Path, *, check_observer: bool = False,
    log: Path | None = None, options: Options = Options(), weights: bool = False,
    report: Report = lambda line: None,
) -> Path:  # fmt: skip
    """Records ``workload`` under ``engine`` into a new trace at ``out``.

    Args:
        engine: the engine to record.
        workload: what it generates.
        out: path of the trace.
        check_observer: also generate in an engine without taps, and record the difference in the trace.
        log: file for the engine's output.
        options: how much is recorded.
        weights: copy the checkpoint's tensors into the trace too.
        report: called with each line of progress.

    Returns:
        ``out``. If the engine fails, the trace keeps the steps that were finished and says so.

    Raises:
        WorkloadError, EngineFailed, UsageError, Unsupported: see `EngineProcess`.
    """
    model = Path(workload.model)
    check_model(model)
    check_lengths(workload, {**engine.settings, **workload.settings})
    workload, header = recording_header(engine, workload, options.level)
    recipients = options.recipients
    if recipients:
        options = replace(options, recipients=(*recipients, own_recipient()))
    header = _without_tokens(header, options)
    with making(out, header, recipients) as directory:
        if weights:
            report("Copying the weights")
            store_weights(model, directory, options.recipients)
        report(f"Starting the engine {engine.name}")
        graphs = GraphOptions(
            "nothing", options.sites, options.sides, options.level, withhold=options.withhold is not None
        )
        with EngineProcess(
            engine, model=model.resolve(), settings=workload.settings, log=log, graphs=graphs
        ) as process:
            workload = tokenized(workload, process)
            known = {"engine": engine_header(engine, process.info), "workload": workload.as_dict()}
            directory.update_run(**_without_tokens(known, options))
            _tell_dtype(directory, workload, process.info, report)
            report("Generating, with recording on")
            directory.update_run(**options.header())
            for note in options.told():
                directory.note(note)
            request = PassRequest(directory.path.resolve(), RECORD, options=options)
            recorded = record_pass(process, directory, workload, request)
        if check_observer:
            report(f"Starting the engine {engine.name} again, without taps")
            with EngineProcess(
                engine, model=model.resolve(), settings=workload.settings, log=log, taps=False
            ) as process:
                plain = process.generate([p.as_dict() for p in workload.prompts])
            directory.update_run(observer=observer_effect(plain["requests"], recorded["requests"]))
    return out


def replay(
    engine: Launchable, golden: Path, out: Path, *, settings: Mapping[str, Any] | None = None,
    model: Path | None = None, injected: bool = True, other_weights: bool = False, log: Path | None = None,
    report: Report = lambda line: None,
) -> Path:  # fmt: skip
    """Replays a golden trace under ``engine`` into a new trace at ``out``: the rerun and the injected pass.

    Args:
        engine: the candidate.
        golden: the golden trace.
        out: path of the candidate trace.
        settings: engine arguments that override those of the golden workload.
        model: checkpoint directory, if it has moved since recording.
        injected: whether to make the injected pass too.
        other_weights: whether to continue if the checkpoint's weights differ from golden's.
        log: file for the engine's output.
        report: called with each line of progress.

    Raises:
        OtherWeights: the checkpoint differs from golden's.
    """
    source = open_trace(golden)
    source.require_recording()
    workload = workload_of(source, settings or {}, model, other_weights=other_weights)
    check_lengths(workload, {**engine.settings, **workload.settings})
    header = replay_header(engine, workload, source.digest(), source.run.level)
    model = Path(workload.model).resolve()
    with making(out, header) as directory:
        report(f"Starting the engine {engine.name}")
        with EngineProcess(
            engine, model=model, settings=workload.settings, log=log, inherited=workload.inherited,
            # Taps everywhere, though golden may have fewer: where the candidate calls its operators otherwise,
            # golden's globs do not tell which are meant.
            graphs=GraphOptions("golden", level=replayed_level(source, injected=injected)),
        ) as process:  # fmt: skip
            replay_into(process, directory, engine, source, workload, injected=injected, report=report)
    return out


def replay_into(
    process: EngineProcess, directory: TraceDirectory, engine: Launchable, golden: Trace, workload: Workload, *,
    injected: bool = True, report: Report = lambda line: None,
) -> None:  # fmt: skip
    """All that a new trace says of a replay by a running engine: see `replay_passes`, and what engine it is."""
    directory.update_run(engine=engine_header(engine, process.info))
    _tell_dtype(directory, workload, process.info, report)
    replay_passes(process, directory, golden, workload, injected=injected, report=report)


def _tell_dtype(directory: TraceDirectory, workload: Workload, info: Mapping[str, Any], report: Report) -> None:
    """Says at once, and in the trace, that the engine took another dtype than the checkpoint's."""
    if told := other_dtype(Path(workload.model), workload.settings, info):
        report(told)
        directory.note(told)


def replay_passes(
    process: EngineProcess, directory: TraceDirectory, golden: Trace, workload: Workload, *,
    injected: bool = True, report: Report = lambda line: None,
) -> None:  # fmt: skip
    """The rerun and the injected pass, in a running engine.

    Where golden has kernels, the injected pass has them too; in the rerun they would be judged on other inputs.
    """
    golden.require_recording()
    workload = as_long_as(golden, workload)
    report("Generating again with golden tokens forced (rerun)")
    rerun = PassRequest(directory.path.resolve(), RERUN, golden.local_path())
    record_pass(process, directory, workload, rerun)
    if injected:
        report("Generating with golden inputs fed to every operator (injected)")
        options = Options(level=replayed_level(golden))
        record_pass(process, directory, workload, replace(rerun, name=INJECTED, feed=Inject(), options=options))


def replayed_level(golden: Trace, *, injected: bool = True) -> str:
    """At which a replay's passes are recorded at most; golden may be a stranger's, and say anything."""
    return KERNEL if injected and golden.run.level == KERNEL else OPERATOR


def record_pass(
    process: EngineProcess, directory: TraceDirectory, workload: Workload, request: PassRequest
) -> Mapping[str, Any]:
    """One pass in a running engine; returns what the engine generated.

    Args:
        process: the engine.
        directory: the trace that ``request`` names.
        workload: what is generated.
        request: what pass to make of it.

    Raises:
        ValueError: ``request`` names another trace.
        RecordingIncomplete: the engine finished, but not all that it did is in the trace.
        EngineFailed: see `EngineProcess.request`.
    """
    if request.trace != directory.path.resolve():
        raise ValueError(f"the request names {request.trace}, and the trace is {directory.path}")
    result = process.generate([p.as_dict() for p in workload.prompts], request)
    for note in _left_out(result):
        directory.note(note)
    lost, kept = _lost(result), result
    if request.options.withhold is not None:
        lengths = [len(prompt.token_ids or ()) for prompt in workload.prompts]
        kept = Withheld(request.options.withhold).results(result, lengths)
    if not lost:
        directory.add_pass(request.name, kept)
        return result
    directory.note(lost)
    with contextlib.suppress(RecordingIncomplete):  # a full disk may have no room for the manifest either
        directory.add_pass(request.name, kept)
    raise RecordingIncomplete(f"The engine finished, but {directory.path} is incomplete: {lost}")


def _without_tokens(run: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """What a manifest says of a run, as far as the options allow."""
    if options.withhold is None:
        return dict(run)
    withheld = Withheld(options.withhold)
    return {**run, "workload": withheld.workload(run["workload"]), "withheld": withheld.said()}


_ENDED = {"max_steps": "--max-steps", "max_bytes": "--max-bytes"}


def _left_out(result: Mapping[str, Any]) -> list[str]:
    """What the recording leaves out on request, in sentences."""
    ranks = [rank for rank in result["ranks"] if rank]
    ended = {rank["ended"]: rank["steps"] for rank in ranks if rank.get("ended") in _ENDED}
    notes = [f"The recording ended after {n} steps, as {_ENDED[why]} asked." for why, n in ended.items()]
    dropped = max((rank.get("dropped", 0) for rank in ranks), default=0)
    if dropped:
        notes.append(f"{dropped} steps were dropped because the writer could not keep up.")
    return notes


def _lost(result: Mapping[str, Any]) -> str:
    """What the recorders say went wrong, as a sentence; empty if nothing did."""
    errors = {text: count for rank in result["ranks"] for text, count in rank.get("errors", {}).items()}
    return "; ".join(f"{text} ({count} times)" for text, count in errors.items())


def observer_effect(plain: Sequence[Mapping[str, Any]], recorded: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What recording changed: results of the same requests without and with taps.

    Returns:
        ``sequences`` compared, how many ``tokens_differ`` in (their later tokens are not compared), and the
        largest and mean absolute difference of the logprobs (natural log) of equal tokens, None without any.
    """
    differing, drift = 0, []
    for one, other in zip(plain, recorded, strict=True):
        equal = next(
            (i for i, (a, b) in enumerate(zip(one["token_ids"], other["token_ids"], strict=False)) if a != b), None
        )
        differing += equal is not None or len(one["token_ids"]) != len(other["token_ids"])
        pairs = zip(one["logprobs"] or [], other["logprobs"] or [], strict=False)
        drift += [abs(a - b) for a, b in list(pairs)[:equal]]
    stated = {"max": max(drift), "mean": sum(drift) / len(drift)} if drift else None
    return {"sequences": len(plain), "tokens_differ": differing, "logprob_abs_diff": stated}


def recording_header(
    engine: Launchable, workload: Workload, level: str = OPERATOR
) -> tuple[Workload, dict[str, Any]]:
    """The workload with the digest of its checkpoint's weights, and what a recording of it says before the engine
    has started: that of `run_header`, and what identifies the model."""
    model = Path(workload.model)
    checkpoint = read_checkpoint(model)
    workload = replace(workload, weights=checkpoint.digest)
    said = run_header("recording", engine, workload, level)
    return workload, {**said, "checkpoint": checkpoint.tensors, "model_files": model_files(model)}


def tokenized(workload: Workload, process: EngineProcess) -> Workload:
    """The workload with token ids for prompts that were given as text."""
    texts = [p.text for p in workload.prompts if p.token_ids is None and p.text is not None]
    ids = iter(process.tokenize(texts) if texts else [])
    prompts = [p if p.token_ids is not None else replace(p, token_ids=tuple(next(ids))) for p in workload.prompts]
    _refuse_empty(prompts)
    return replace(workload, prompts=tuple(prompts))


def _refuse_empty(prompts: list[Prompt]) -> None:
    for number, prompt in enumerate(prompts):
        if not prompt.token_ids:
            raise WorkloadError(f"Prompt {number} has no tokens after tokenization; give at least one.")
