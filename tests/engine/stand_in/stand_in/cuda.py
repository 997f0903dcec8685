"""Lets vLLM's own capture, padding, dispatch and replay of CUDA graphs use `stand_in.graphs` on a CPU.

What vLLM asks of CUDA is answered here. What it asks of an attention kernel in a FULL graph (to read its metadata
from memory that is filled before a replay) the CPU's kernel does not do: it asks the forward context, which is set
around the replay.
"""

import contextlib
import functools
import os

import torch

from stand_in import graphs


def install(platform):
    """Before any of the engine's workers imports what it captures with."""
    torch.cuda.CUDAGraph, torch.cuda.graph = graphs.Graph, graphs.capture
    torch.accelerator.get_memory_info = lambda *device: (1 << 33, 1 << 34)
    platform.support_static_graph_mode = classmethod(lambda cls: True)
    platform.graph_pool_handle = lambda *platform: graphs.POOL
    if os.environ.get("STAND_IN_PIECES") == "compiled":
        platform.get_static_graph_wrapper_cls = classmethod(
            lambda cls: "vllm.compilation.cuda_graph.CUDAGraphWrapper"
        )
    _python_kernels()
    _capturing()
    _attention()


def _python_kernels():
    from tracereplay.hooks import taps

    graphs.PYTHON.update({"tracereplay::feed": taps._feed, "tracereplay::observe": taps._observe})


def _capturing():
    import vllm.compilation.breakable_cudagraph as breakable
    import vllm.compilation.cuda_graph as cuda_graph
    import vllm.utils.torch_utils as torch_utils
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.gpu import cudagraph_utils, model_runner

    for module in (torch_utils, breakable):
        module.weak_ref_tensor = graphs.weak
    for module in (torch_utils, breakable, cuda_graph):
        module.weak_ref_tensors = _weak
    for module in (breakable, cuda_graph, cudagraph_utils):
        module.capture_pool = _pool
    cudagraph_utils.graph_capture = lambda device=None: contextlib.nullcontext()
    model_runner.lock_workspace = lambda: None
    warm_up = CPUWorker.compile_or_warm_up_model

    @functools.wraps(warm_up)
    def compile_or_warm_up_model(self):
        times = warm_up(self)
        self.model_runner.capture_model()  # the CPU worker never asks for it
        return times

    CPUWorker.compile_or_warm_up_model = compile_or_warm_up_model


@contextlib.contextmanager
def _pool(pool, *rest, **options):
    yield pool


def _weak(tensors):
    if isinstance(tensors, (list, tuple)):
        return type(tensors)(graphs.weak(x) for x in tensors)
    return graphs.weak(tensors)


def _attention():
    from vllm.forward_context import set_forward_context
    from vllm.v1.attention.backend import AttentionCGSupport
    from vllm.v1.attention.backends import cpu_attn
    from vllm.v1.worker.gpu import cudagraph_utils, kv_connector, model_runner

    cpu_attn.CPUAttentionMetadataBuilder._cudagraph_support = AttentionCGSupport.ALWAYS
    step = {}

    def keeping(name, original, of):
        @functools.wraps(original)
        def keep(*args, **kwargs):
            result = original(*args, **kwargs)
            step[name] = of(result, *args, **kwargs)
            return result

        return keep

    for kind in (kv_connector.KVConnector, kv_connector.ActiveKVConnector):
        kind.pre_forward = keeping(
            "attention", kind.pre_forward,
            lambda result, connector, output, batch=None, attn_metadata=None: attn_metadata,
        )  # fmt: skip
    model_runner.build_slot_mappings_by_layer = keeping(
        "slots", model_runner.build_slot_mappings_by_layer, lambda result, *args, **kwargs: result
    )
    manager = cudagraph_utils.ModelCudaGraphManager
    replay = manager.run_fullgraph

    @functools.wraps(replay)
    def run_fullgraph(self, desc):
        with set_forward_context(
            step["attention"], self.vllm_config, num_tokens=desc.num_tokens, slot_mapping=step["slots"]
        ):
            return replay(self, desc)

    manager.run_fullgraph = run_fullgraph
