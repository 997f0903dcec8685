"""Ways to run that cannot be recorded, refused before a model is loaded where the arguments say so already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracereplay.errors import Unsupported

__all__ = ["GENERATES", "refuse_arguments", "refuse_configuration"]

_SPECULATIVE = "Speculative decoding cannot be recorded or forced; leave speculative_config out."
_PIPELINE = "Pipeline parallelism cannot be recorded yet; set pipeline_parallel_size=1."
_POOLING = "A model that embeds or classifies generates no tokens, and cannot be recorded."
GENERATES = ("generate", "draft")  # runners of models that generate


def refuse_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises Unsupported for engine arguments that say so already."""
    _refuse(bool(arguments.get("speculative_config")), int(arguments.get("pipeline_parallel_size") or 1))


def refuse_configuration(config: Any) -> None:
    """Raises Unsupported, with a remedy, for what no adapter can record.

    Args:
        config: the engine's ``VllmConfig``.
    """
    speculative = getattr(config, "speculative_config", None) is not None
    _refuse(speculative, config.parallel_config.pipeline_parallel_size)
    if getattr(config.model_config, "runner_type", "generate") not in GENERATES:
        raise Unsupported(_POOLING)


def _refuse(speculative: bool, pipeline: int) -> None:
    if speculative:
        raise Unsupported(_SPECULATIVE)
    if pipeline > 1:
        raise Unsupported(_PIPELINE)
