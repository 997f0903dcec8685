"""Ways to run that cannot be recorded, refused before a model is loaded where the arguments say so already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tracereplay.errors import Unsupported
from tracereplay.recorder.options import KERNEL, NO_KERNELS, OPERATOR

__all__ = [
    "GENERATES", "NO_GRAPHS_V0", "captures_graphs", "refuse_arguments", "refuse_configuration",
    "refuse_speculation",
]  # fmt: skip

_OF_V0 = "Speculative decoding can be recorded under vLLM's V1 engine only; leave speculative_config out."
_OF_V2 = (
    "Speculative decoding cannot be recorded under Model Runner V2 yet; leave speculative_config out, or set "
    "VLLM_USE_V2_MODEL_RUNNER=0 (engine add ... --env VLLM_USE_V2_MODEL_RUNNER=0)."
)
_METHOD = (
    "Speculative decoding by the method {method} cannot be recorded yet, since its drafts come of parts of the "
    'model itself or of a plugin; give a speculative_config with the method "ngram" or "draft_model", or leave it '
    "out."
)
_SYNTHETIC = (
    "Speculative decoding with synthetic acceptance cannot be recorded, since its tokens are not the model's; "
    "leave rejection_sample_method out of speculative_config."
)
_ASYNCHRONOUS = (
    "Speculative decoding cannot be recorded under asynchronous scheduling, where the engine does not know which "
    "drafts were accepted when it prepares a step; set async_scheduling=false."
)
_IN_GRAPHS = (
    "Speculative decoding cannot be recorded inside CUDA graphs yet; set enforce_eager=true, or give "
    '--set compilation_config={"cudagraph_mode":"NONE"} to keep compilation without graphs.'
)
_PIPELINE = "Pipeline parallelism cannot be recorded yet; set pipeline_parallel_size=1."
_OVERLAP = (
    "Dual-batch overlap, which runs a batch's halves in two threads, cannot be recorded; set enable_dbo=false."
)
_POOLING = "A model that embeds or classifies generates no tokens, and cannot be recorded."
NO_GRAPHS_V0 = "CUDA graphs of vLLM's V0 engine cannot be recorded; give --set enforce_eager=true."
GENERATES = ("generate", "draft")  # runners of models that generate
_METHODS = ("ngram", "[ngram]", "draft_model")


def refuse_arguments(
    arguments: Mapping[str, Any], *, v0: bool = False, cuda: bool = False, level: str = OPERATOR
) -> None:
    """Raises Unsupported for engine arguments that say so already, with all remedies at once.

    Args:
        arguments: of ``vllm.LLM``.
        v0: whether the V0 engine would start.
        cuda: whether it would run on a device that has CUDA graphs.
        level: at which it will be recorded.
    """
    found = [
        _speculation_argument(arguments, v0),
        _pipeline(int(arguments.get("pipeline_parallel_size") or 1)),
        _OVERLAP if arguments.get("enable_dbo") else None,
    ]
    if cuda and _captures_graphs(arguments, v0):
        found.append(NO_GRAPHS_V0 if v0 else _IN_GRAPHS if arguments.get("speculative_config") else None)
        found.append(NO_KERNELS if level == KERNEL else None)
    _raise(found)


def _speculation_argument(arguments: Mapping[str, Any], v0: bool) -> str | None:
    speculative = arguments.get("speculative_config")
    if speculative and v0:
        return _OF_V0
    if not isinstance(speculative, Mapping):
        return None
    model = speculative.get("model")
    method = speculative.get("method") or (model if model in _METHODS else "draft_model")
    synthetic = speculative.get("rejection_sample_method") == "synthetic"
    return _speculation(str(method), synthetic, asynchronous=arguments.get("async_scheduling") is True)


def _captures_graphs(arguments: Mapping[str, Any], v0: bool) -> bool:
    """Whether the engine would capture CUDA graphs, as far as its arguments tell; by default it does."""
    if arguments.get("enforce_eager") or arguments.get("optimization_level") == 0:
        return False
    given = arguments.get("compilation_config")
    if v0 or not isinstance(given, Mapping):
        return True
    if given.get("cudagraph_mode") is not None:
        return str(given["cudagraph_mode"]).upper() not in ("NONE", "0")
    return given.get("use_cudagraph") is not False


def refuse_configuration(config: Any) -> None:
    """Raises Unsupported, with a remedy, for what no adapter can record.

    Args:
        config: the engine's ``VllmConfig``.
    """
    parallel = config.parallel_config
    overlap = _OVERLAP if getattr(parallel, "enable_dbo", False) else None
    _raise([_pipeline(parallel.pipeline_parallel_size), overlap])
    if getattr(config.model_config, "runner_type", "generate") not in GENERATES:
        raise Unsupported(_POOLING)


def refuse_speculation(config: Any, *, runner: str = "V1") -> None:
    """The same for speculative decoding, which only the adapter of the V1 runner can record.

    Args:
        config: the engine's ``VllmConfig``.
        runner: ``V0``, ``V1`` or ``V2``.
    """
    speculative = getattr(config, "speculative_config", None)
    if speculative is None:
        return
    if runner != "V1":
        raise Unsupported(_OF_V0 if runner == "V0" else _OF_V2)
    synthetic = getattr(speculative, "rejection_sample_method", None) == "synthetic"
    asynchronous = bool(getattr(config.scheduler_config, "async_scheduling", False))
    _raise(
        [
            _speculation(str(speculative.method), synthetic, asynchronous=asynchronous),
            _IN_GRAPHS if captures_graphs(config) else None,
        ]
    )


def captures_graphs(config: Any) -> bool:
    """Whether an engine with this ``VllmConfig`` captures CUDA graphs of its model."""
    compilation = config.compilation_config
    mode = getattr(compilation, "cudagraph_mode", None)
    wanted = bool(getattr(compilation, "use_cudagraph", False)) if mode is None else mode.name != "NONE"
    return wanted and bool(compilation.cudagraph_capture_sizes) and not config.model_config.enforce_eager


def _speculation(method: str, synthetic: bool, *, asynchronous: bool) -> str | None:
    if method not in _METHODS:
        return _METHOD.format(method=method)
    if synthetic:
        return _SYNTHETIC
    return _ASYNCHRONOUS if asynchronous else None


def _pipeline(size: int) -> str | None:
    return _PIPELINE if size > 1 else None


def _raise(refusals: Iterable[str | None]) -> None:
    """Raises Unsupported with all that are sentences, if any is."""
    found = [refusal for refusal in refusals if refusal is not None]
    if found:
        raise Unsupported(" ".join(found))
