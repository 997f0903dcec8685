"""The context that vLLM's layers need: a configuration, and process groups of only this process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["enter"]

# The smallest model that vLLM accepts in a configuration. It is never built.
_MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": 64,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
_ALONE = {"enforce_eager": True, "skip_tokenizer_init": True, "tensor_parallel_size": 1, "dtype": "bfloat16"}
_entered: list[Any] = []  # contexts that are never exited


def enter(settings: Mapping[str, Any]) -> Any:
    """Prepares this process for building layers as an eager engine builds them.

    Args:
        settings: engine arguments that the user gave this engine.

    Returns:
        The configuration, vLLM's ``VllmConfig``, which stays the current one.
    """
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs

    with tempfile.TemporaryDirectory(prefix="tracereplay-alone-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_MODEL))
        # Why not an empty VllmConfig: defaults (custom ops, priorities of kernels, the platform's changes) are
        # resolved when engine arguments are made into a configuration.
        config = EngineArgs(model=folder, **{**settings, **_ALONE}).create_engine_config()
    # Why never exited: layers of newer versions also read the configuration when they run.
    _entered.append(set_current_vllm_config(config))
    _entered[-1].__enter__()
    _choose_kernels(config)
    _process_groups()
    return config


def _choose_kernels(config: Any) -> None:
    """Sets the priorities of operators' implementations, as a worker does (from vLLM 0.19 on)."""
    priority = getattr(getattr(config, "kernel_config", None), "ir_op_priority", None)
    if priority is not None and hasattr(priority, "set_default"):
        priority.set_default()
    try:
        import vllm.ir as ir
    except ImportError:
        return
    if hasattr(ir, "set_default_torch_wrap"):
        ir.set_default_torch_wrap(config.compilation_config.ir_enable_torch_wrap)


def _process_groups() -> None:
    from vllm.distributed import parallel_state

    # A store in memory, without a port or file that another process could access.
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.init_distributed_environment(world_size=1, rank=0, local_rank=0, backend="gloo")
    parallel_state.initialize_model_parallel(1, 1)
