"""The reproducer of one recorded operator: vLLM's own layer, built from its recorded configuration."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tracereplay.errors import UsageError
from tracereplay.event import Call, Site
from tracereplay.guest.alone.operators.known import plan
from tracereplay.guest.alone.service import NotReplayable
from tracereplay.report.repro.folder import Reproducer, compiled_caution, engine_line, fill, quoted
from tracereplay.report.repro.memory import Memories, plain, row_major
from tracereplay.trace import TensorBytes, Trace
from tracereplay.trace.parameters import Parameters

__all__ = ["reproduce_operator"]

_LAYERS = "vllm.model_executor.layers"
_MODULES: Mapping[str, str] = {
    "norm": f"{_LAYERS}.layernorm", "activation": f"{_LAYERS}.activation", "linear": f"{_LAYERS}.linear",
    "embedding": f"{_LAYERS}.vocab_parallel_embedding", "rotary": f"{_LAYERS}.rotary_embedding",
}  # fmt: skip


def reproduce_operator(trace: Trace, step: int, site: Site, call: Call, parameters: Parameters) -> Reproducer:
    """What runs the call of the operator at ``site`` again.

    Args:
        trace: a recording.
        step: in which it ran.
        site, call: the operator, and its call.
        parameters: its weights.

    Raises:
        UsageError: it is not rebuilt, or was recorded on several ranks.
        MissingWeights: see `Parameters.load`.
    """
    if len(trace.ranks("record")) > 1:
        raise UsageError(f"{site.name} was recorded on several tensor-parallel ranks, and is not reproduced.")
    weights = {p.name: _weight(p.dtype, parameters.load(p)) for p in site.parameters}
    dtype = str(trace.run.engine_facts("settings").get("dtype"))
    try:
        made = plan(site.operator, site.config, dtype, weights)
        made.check(call.inputs)
    except NotReplayable as error:
        raise UsageError(f"{site.operator} at {site.name} cannot be reproduced: {error}.") from error
    inputs, lines, names = _inputs(call)
    expected = {f"output {i}": plain(value) for i, value in enumerate(call.outputs)}
    compared = [(name, f"results[{i}]") for i, name in enumerate(expected)]
    for i, value in sorted(call.written.items()):
        expected[f"{names[i]} after the call"] = plain(value)
        compared.append((f"{names[i]} after the call", names[i]))
    inputs |= {f"weights.{name}": weight for name, weight in weights.items()}
    if made.family == "embedding":  # what an engine adds to a vocabulary, its loader adds
        rows = made.arguments["org_num_embeddings"]
        inputs["weights.weight"] = _first_rows(inputs["weights.weight"], rows)
    arguments = [f"{name}={value!r}" for name, value in made.arguments.items()]
    if made.family == "rotary":
        arguments.append(f"dtype=torch.{made.dtype}")
    caution = compiled_caution(trace)
    script = fill(
        "operator.j2",
        [*inputs.values(), *expected.values()],
        title=quoted(f"{site.operator} at {site.name}, step {step} of a recording."),
        engine=quoted(engine_line(trace)),
        caution=None if caution is None else quoted(caution),
        module=_MODULES[made.family],
        operator=made.operator,
        dtype=made.dtype,
        arguments=arguments,
        inputs=lines,
        call=", ".join(names),
        compared=compared,
    )
    return Reproducer(script, inputs, expected, f"vLLM's layer {made.operator}", caution)


def _inputs(call: Call) -> tuple[dict[str, TensorBytes], list[str], list[str]]:
    """Tensors of the file, lines that make the arguments, and the arguments' names."""
    memories = Memories(call.inputs)
    inputs: dict[str, TensorBytes] = {}
    names = [f"input_{i}" for i in range(len(call.inputs))]
    pairs = zip(names, call.inputs, strict=True)
    lines = [f"{name} = {memories.place(name, value, inputs)}" for name, value in pairs]
    return inputs, lines, names


def _weight(dtype: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> TensorBytes:
    return TensorBytes(dtype, array.shape, row_major(array.shape), array.tobytes())


def _first_rows(tensor: TensorBytes, rows: int) -> TensorBytes:
    size = len(tensor.data) // tensor.shape[0]
    return TensorBytes(tensor.dtype, (rows, *tensor.shape[1:]), tensor.strides, bytes(tensor.data)[: rows * size])
