"""Ways to run that cannot be recorded, refused before a model is loaded where the arguments say so already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracereplay.errors import Unsupported

__all__ = ["GENERATES", "refuse_arguments", "refuse_configuration", "refuse_speculation"]

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
_PIPELINE = "Pipeline parallelism cannot be recorded yet; set pipeline_parallel_size=1."
_POOLING = "A model that embeds or classifies generates no tokens, and cannot be recorded."
GENERATES = ("generate", "draft")  # runners of models that generate
_METHODS = ("ngram", "[ngram]", "draft_model")


def refuse_arguments(arguments: Mapping[str, Any], *, v0: bool = False) -> None:
    """Raises Unsupported for engine arguments that say so already; ``v0``: of the V0 engine."""
    speculative = arguments.get("speculative_config")
    if speculative and v0:
        raise Unsupported(_OF_V0)
    if isinstance(speculative, Mapping):
        model = speculative.get("model")
        method = speculative.get("method") or (model if model in _METHODS else "draft_model")
        synthetic = speculative.get("rejection_sample_method") == "synthetic"
        _refuse_speculation(str(method), synthetic, asynchronous=arguments.get("async_scheduling") is True)
    _refuse_pipeline(int(arguments.get("pipeline_parallel_size") or 1))


def refuse_configuration(config: Any) -> None:
    """Raises Unsupported, with a remedy, for what no adapter can record.

    Args:
        config: the engine's ``VllmConfig``.
    """
    _refuse_pipeline(config.parallel_config.pipeline_parallel_size)
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
    _refuse_speculation(str(speculative.method), synthetic, asynchronous=asynchronous)


def _refuse_speculation(method: str, synthetic: bool, *, asynchronous: bool) -> None:
    if method not in _METHODS:
        raise Unsupported(_METHOD.format(method=method))
    if synthetic:
        raise Unsupported(_SYNTHETIC)
    if asynchronous:
        raise Unsupported(_ASYNCHRONOUS)


def _refuse_pipeline(size: int) -> None:
    if size > 1:
        raise Unsupported(_PIPELINE)
