"""The reproducer of one recorded operator: the engine's own layer, built from its recorded configuration."""

from __future__ import annotations

import numpy as np

from tracereplay.alone.child.service import NotReplayable
from tracereplay.engines.known import family_of
from tracereplay.errors import UsageError
from tracereplay.event import Call, Site
from tracereplay.passes import RECORD
from tracereplay.report.repro.folder import Reproducer, compiled_caution, engine_line, fill, quoted
from tracereplay.report.repro.memory import Memories, plain, row_major
from tracereplay.trace import TensorBytes, Trace
from tracereplay.trace.parameters import Parameters

__all__ = ["reproduce_operator"]


def reproduce_operator(trace: Trace, step: int, site: Site, call: Call, parameters: Parameters) -> Reproducer:
    """A reproducer of a call of the operator at ``site``.

    Args:
        trace: a recording.
        step: the step in which it ran.
        site, call: the operator, and its call.
        parameters: its weights.

    Raises:
        UsageError: it cannot be rebuilt, or was recorded on several ranks.
        MissingWeights: see `Parameters.load`.
    """
    family = family_of(trace.run.engine)
    alone = family.alone
    if alone is None:
        raise UsageError(f"Operators of {family.title} cannot be reproduced.")
    if len(trace.ranks(RECORD)) > 1:
        raise UsageError(f"{site.name} was recorded on several tensor-parallel ranks, and cannot be reproduced.")
    weights = {p.name: _weight(p.dtype, parameters.load(p)) for p in site.parameters}
    dtype = str(trace.run.engine_facts("settings").get("dtype"))
    try:
        made = alone.plan(site.operator, site.config, dtype, weights)
        made.check(call.inputs)
    except NotReplayable as error:
        raise UsageError(f"{site.operator} at {site.name} cannot be reproduced: {error}.") from error
    if not made.modules:
        raise UsageError(
            f"{site.operator} at {site.name} cannot be reproduced as a script: it uses state that its engine "
            "keeps between calls. 'tracereplay replay --mode isolated' runs it."
        )
    inputs, lines, names = _inputs(call)
    expected = {f"output {i}": plain(value) for i, value in enumerate(call.outputs)}
    compared = [(name, f"results[{i}]") for i, name in enumerate(expected)]
    for i, value in sorted(call.written.items()):
        expected[f"{names[i]} after the call"] = plain(value)
        compared.append((f"{names[i]} after the call", names[i]))
    inputs |= {f"weights.{name}": weight for name, weight in weights.items()}
    if made.role == "embedding":  # what an engine adds to a vocabulary, its loader adds
        rows = made.arguments["org_num_embeddings"]
        inputs["weights.weight"] = _first_rows(inputs["weights.weight"], rows)
    arguments = [f"{name}={value!r}" for name, value in made.arguments.items()]
    if made.role == "rotary":
        arguments.append(f"dtype=torch.{made.dtype}")
    caution = compiled_caution(trace)
    script = fill(
        "operator.j2",
        alone.templates,
        [*inputs.values(), *expected.values()],
        title=quoted(f"{site.operator} at {site.name}, step {step} of a recording."),
        engine=quoted(engine_line(trace)),
        caution=None if caution is None else quoted(caution),
        modules=list(made.modules),
        operator=made.operator,
        dtype=made.dtype,
        arguments=arguments,
        inputs=lines,
        call=", ".join(names),
        compared=compared,
    )
    return Reproducer(script, inputs, expected, f"{family.title}'s layer {made.operator}", caution)


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
