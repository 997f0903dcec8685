"""Recording and replaying, as the analyst's side sees them: an engine process and the trace it fills."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tracereplay.errors import TraceError, WorkloadError
from tracereplay.launch.process import EngineProcess, Launchable
from tracereplay.storage.checkpoint import check_model, weights_digest
from tracereplay.trace import Trace, TraceDirectory, open_trace
from tracereplay.workload import Prompt, Workload

__all__ = ["record", "replay", "replay_passes"]

Report = Callable[[str], None]


def record(
    engine: Launchable, workload: Workload, out: Path, *, force: bool = False, report: Report = lambda line: None
) -> Path:
    """Records ``workload`` under ``engine`` into a new trace at ``out``.

    Returns:
        ``out``. If the engine fails, the trace keeps the steps that were finished and says so.

    Raises:
        WorkloadError, EngineFailed, UsageError, Unsupported: see `EngineProcess`.
    """
    model = Path(workload.model)
    check_model(model)
    workload = replace(workload, model=str(model.resolve()), weights=weights_digest(model))
    directory = TraceDirectory(out, _run("recording", engine, workload), force=force)
    report(f"Starting the engine {engine.name}")
    with EngineProcess(engine, model=model, settings=workload.settings) as process:
        workload = _tokenized(workload, process)
        directory.update_run(engine={"name": engine.name, **process.info}, workload=workload.as_dict())
        report("Generating, with recording on")
        _one_pass(process, directory, "record", workload)
    directory.complete()
    return out


def replay(
    engine: Launchable, golden: Path, out: Path, *, settings: Mapping[str, Any] | None = None,
    model: Path | None = None, injected: bool = True, force: bool = False,
    report: Report = lambda line: None,
) -> Path:  # fmt: skip
    """Replays a golden trace under ``engine`` into a new trace at ``out``: the rerun and the injected pass.

    Args:
        engine: the candidate.
        golden: the golden trace.
        out: path of the candidate trace.
        settings: engine arguments laid over those of the golden workload.
        model: checkpoint, where it is not where it was recorded.
        injected: whether to make the injected pass too.
        force: replace what is at ``out``.
        report: is told what is being done.
    """
    source = open_trace(golden)
    workload = Workload.from_dict(source.run["workload"]).with_settings(settings or {})
    workload = replace(workload, model=str(model or workload.model))
    check_model(Path(workload.model))
    workload = replace(workload, weights=weights_digest(Path(workload.model)))
    run = {**_run("replay", engine, workload), "golden": source.digest()}
    directory = TraceDirectory(out, run, force=force)
    report(f"Starting the engine {engine.name}")
    with EngineProcess(engine, model=Path(workload.model), settings=workload.settings) as process:
        directory.update_run(engine={"name": engine.name, **process.info})
        replay_passes(process, directory, source, workload, injected=injected, report=report)
    directory.complete()
    return out


def replay_passes(
    process: EngineProcess, directory: TraceDirectory, golden: Trace, workload: Workload, *,
    injected: bool = True, report: Report = lambda line: None,
) -> None:  # fmt: skip
    """The rerun and the injected pass, in an engine that is there already."""
    if golden.passes != ("record",):
        raise TraceError(f"{golden.path} is not a recording: it has the passes {list(golden.passes)}.")
    report("Generating again with golden tokens forced (rerun)")
    source = str(golden.path.resolve())
    _one_pass(process, directory, "rerun", workload, golden=source)
    if injected:
        report("Generating with golden inputs fed to every operator (injected)")
        _one_pass(process, directory, "injected", workload, golden=source, inject=True)


def _one_pass(
    process: EngineProcess, directory: TraceDirectory, name: str, workload: Workload,
    golden: str | None = None, inject: bool = False,
) -> None:  # fmt: skip
    where = {"trace": str(directory.path.resolve()), "pass_name": name, "golden": golden, "inject": inject}
    prompts = [p.as_dict() for p in workload.prompts]
    directory.add_pass(name, process.generate(prompts, where))


def _run(kind: str, engine: Launchable, workload: Workload) -> dict[str, Any]:
    return {
        "tracereplay": version("tracereplay"),
        "kind": kind,
        "level": "operator",
        "engine": {"name": engine.name},
        "workload": workload.as_dict(),
        "notes": [],
    }


def _tokenized(workload: Workload, process: EngineProcess) -> Workload:
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
