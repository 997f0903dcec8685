"""The one place that decides what a trace may ask for: a trace is a stranger's; it asks, it does not order.

    golden trace ── Run.requested ──▶ gate ──▶ Workload, a model's directory ──▶ an engine
                                        │
                                        └────▶ UnsafeRequest: all that it asks for and may not, in one sentence

Only settings known to be plain numbers or choices are applied automatically (gate.toml, with a reason for each).
What the user gives by the same name overrides them, unchecked. Nothing here starts or loads anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracereplay.errors import TraceError, UnsafeRequest, UsageError
from tracereplay.gate.adapters import ADAPTERS, with_adapters
from tracereplay.gate.rules import NESTED, sampling_refusal, setting_refusal, variable_refusal
from tracereplay.storage.adapter import adapter_settings
from tracereplay.storage.checkpoint import check_model, check_weights, model_files, read_checkpoint
from tracereplay.trace import Trace
from tracereplay.trace.run import Asked, RecordedPrompt, asked_of
from tracereplay.workload import Prompt, Workload

__all__ = [
    "applied_settings",
    "check_request",
    "setting_refusal",
    "variable_refusal",
    "weights_directory",
    "workload_of",
]

_SHOWN = 80  # characters of a value in a message
# What a server is given for its machine, its clients or its replicas: the same is computed without.
_NOT_INHERITED = frozenset(
    {
        "cpu_offload_gb", "data_parallel_size", "device", "disable_log_stats", "distributed_executor_backend",
        "gpu_memory_utilization", "kv_cache_memory_bytes", "max_logprobs", "num_gpu_blocks_override",
        "skip_tokenizer_init", "swap_space", "tokenizer_mode",
    }
)  # fmt: skip


def check_request(trace: Trace, given: Mapping[str, Any], model: Path | None) -> None:
    """Raises what `workload_of` raises, except for checks that take long (the checkpoint's digest)."""
    _workload(trace, given)
    _directory(trace, _asked(trace), model)


def workload_of(
    trace: Trace, given: Mapping[str, Any], model: Path | None, *, other_weights: bool = False
) -> Workload:
    """The workload that a trace asks for, as it may be given to an engine.

    Args:
        trace: a recording.
        given: the user's engine arguments, each overriding the trace's; ``lora_modules`` has directories of
            adapters by name.
        model: the user's checkpoint, overriding the trace's.
        other_weights: whether the user's checkpoint may hold weights that differ from the recorded ones.

    Returns:
        The workload, ``weights`` being those of the model that is used.

    Raises:
        UnsafeRequest: it asks for something that only the user may grant.
        OtherWeights: the checkpoint differs from the recorded one.
        UsageError: the model that it names is not the recorded one, so the user must specify one.
        WorkloadError: there is no model, or a request's adapter is not there.
    """
    work = _workload(trace, given)
    directory, digest = _identified(trace, model, other_weights=other_weights)
    return Workload(str(directory), work.prompts, work.settings, digest, work.inherited)


def weights_directory(trace: Trace, model: Path | None) -> Path | None:
    """Where to look for a recorded operator's weights, each of which is then known by its digest; None: nowhere.

    Only safetensors files are read from there, so that it need not be the whole model that was recorded.
    """
    if model is not None or trace.run.requested is None:
        return model
    path = Path(_asked(trace).model)
    _refuse_inside(path, trace)
    return path


def applied_settings(trace: Trace) -> dict[str, Any]:
    """The engine arguments of a trace that are applied automatically; others are left out."""
    requested = trace.run.requested
    settings = {} if requested is None else asked_of(requested).settings
    return {name: value for name, value in settings.items() if setting_refusal(name, value) is None}


def _asked(trace: Trace) -> Asked:
    if trace.run.requested is None:
        raise TraceError(f"{trace.path} does not say what was generated, so that it cannot be generated again.")
    return asked_of(trace.run.requested)


def _workload(trace: Trace, given: Mapping[str, Any]) -> Workload:
    if trace.run.withheld is not None:
        raise UsageError(
            f"{trace.path} was recorded without its tokens (--withhold tokens), so it cannot be generated again; "
            "compare it with another one, or replay its operators with --mode isolated."
        )
    asked = _asked(trace)
    refused = [
        f"{name}={_short(value)}, which {why}"
        for name, value in asked.settings.items()
        if name not in given and (why := setting_refusal(name, value)) is not None
    ]
    hint = f"Give --set {refused[0].partition('=')[0]}=... yourself if you trust it." if refused else ""
    if any(line.startswith("speculative_config=") for line in refused):
        hint += " --set speculative_config=null replays without drafts, and forced tokens are the same."
    sampling = _refused_sampling(asked.prompts)
    _refuse(trace, [*refused, *sampling], hint)
    inherited = _inherited(trace, {**asked.settings, **given})
    settings = {**inherited, **asked.settings, **given}
    requests = (Prompt(p.token_ids, p.text, dict(p.sampling)) for p in asked.prompts)
    prompts, ranks = with_adapters(requests, settings.pop(ADAPTERS, {}))
    settings |= adapter_settings(ranks, settings)
    return Workload(asked.model, prompts, settings, inherited=frozenset(inherited))


def _inherited(trace: Trace, known: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recorded command that its replay takes over, beside ``known`` ones.

    What the gate refuses is left out, not refused: nobody asked us for it. Where it matters, the engines' resolved
    configurations differ, and a verdict says so.
    """
    arguments = trace.run.engine.get("arguments")
    if not trace.run.command or not isinstance(arguments, Mapping):
        return {}
    found = {}
    for name, value in arguments.items():
        if name in known or name in _NOT_INHERITED:
            continue
        if name in NESTED and isinstance(value, Mapping):
            value = {key: part for key, part in value.items() if setting_refusal(name, {key: part}) is None}
        if value != {} and setting_refusal(name, value) is None:
            found[name] = value
    return found


def _refused_sampling(prompts: Sequence[RecordedPrompt]) -> list[str]:
    found: dict[str, str] = {}
    for prompt in prompts:
        for name, value in prompt.sampling.items():
            why = sampling_refusal(name, value)
            if why is not None:
                found.setdefault(name, f"the sampling parameter {_short(name)}={_short(value)}, which {why}")
    return list(found.values())


def _refuse(trace: Trace, refused: Sequence[str], hint: str) -> None:
    if refused:
        raise UnsafeRequest(f"{trace.path} asks for what only you may grant: {'; '.join(refused)}. {hint}".strip())


def _identified(trace: Trace, model: Path | None, *, other_weights: bool) -> tuple[Path, str | None]:
    """The model's directory, and the digest of its weights."""
    directory = _directory(trace, _asked(trace), model)
    check_model(directory)
    digest = read_checkpoint(directory).digest
    if model is None or not other_weights:
        check_weights(trace.run.weights, directory, digest)
    if model is None and digest is None:
        raise UsageError(
            f"The model at {directory} no longer has safetensors files, so it is not known to be the one that was "
            "recorded. Say with --model which to use."
        )
    return directory, digest


def _directory(trace: Trace, asked: Asked, model: Path | None) -> Path:
    """The directory of the model that an engine shall load."""
    if model is not None:
        return model
    path = Path(asked.model)
    _refuse_inside(path, trace)
    if not _is_directory(path):
        raise UsageError(
            f"The model was at {_short(asked.model)} when it was recorded; say with --model where it is now."
        )
    check_model(path)
    _check_files(trace, path)
    return path


def _refuse_inside(path: Path, trace: Trace) -> None:
    if _inside(path, trace):
        raise UnsafeRequest(
            f"{trace.path} asks for a model that came with it, {_short(str(path))}. "
            "Say with --model where yours is, or copy that one elsewhere if you trust it."
        )


def _check_files(trace: Trace, path: Path) -> None:
    recorded = trace.run.model_files
    if not recorded or trace.run.weights is None:
        what = "configuration and tokenizer" if trace.run.weights is not None else "weights"
        raise UsageError(
            f"{trace.path} holds no digest of its model's {what}, so that the model at {path} is not known "
            f"to be the same; give --model {path} if you trust it."
        )
    found = model_files(path)
    changed = sorted(name for name in {*recorded, *found} if recorded.get(name) != found.get(name))
    if changed:
        raise UsageError(
            f"The model at {path} is not the one that was recorded: its {', '.join(changed[:5])} "
            f"{'differ' if len(changed) > 1 else 'differs'}; give --model {path} if that is meant."
        )


def _inside(path: Path, trace: Trace) -> bool:
    if isinstance(trace.path, str):
        return False
    try:
        return path.resolve().is_relative_to(trace.path.resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long, or with a zero in it
        return False


def _short(value: Any) -> str:
    """A stranger's value on one line, without control characters."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
