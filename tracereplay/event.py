"""The contents of a trace, as frozen values: steps, calls, tensors and their rows.

A *row* is one token in a call's tensors, known by (request, sequence, position). Row maps are kept as
``int32`` arrays of shape ``[rows, 3]`` because there is one row a token and tensors are compared by row;
a map shorter than its tensor means that the remaining rows are padding. A row of a draft token that was rejected
(speculative decoding) has the position ``-1 - p``: it was computed at p for a sequence that was not continued so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tracereplay.census import Census
from tracereplay.dtypes import numpy_dtype
from tracereplay.schemas import schema_arguments

__all__ = [
    "COMPILED",
    "UNAPPLIED",
    "Argument",
    "Call",
    "Constant",
    "Kernel",
    "Layout",
    "LeftOut",
    "Named",
    "Opaque",
    "Parameter",
    "Request",
    "RowKey",
    "RowMap",
    "Sampled",
    "Site",
    "Step",
    "Value",
    "ValueSide",
    "flatten",
    "is_triton",
    "make_rows",
    "rejected",
]

RowMap: TypeAlias = npt.NDArray[np.int32]
ValueSide: TypeAlias = Literal["in", "out", "written"]

COMPILED = "compiled.region"  # the kernel that stands for all that a compiled graph ran in a step


class RowKey(NamedTuple):
    """One token of one generation.

    Args:
        request: index of the prompt in the workload.
        sequence: which of its ``n`` samples.
        position: index of the token in the sequence; the prompt begins at 0.
    """

    request: int
    sequence: int
    position: int


def make_rows(keys: list[tuple[int, int, int]]) -> RowMap:
    """A row map of shape ``[len(keys), 3]``."""
    return np.array(keys, dtype=np.int32).reshape(-1, 3)


def rejected(rows: RowMap) -> npt.NDArray[np.bool_]:
    """Which rows are of draft tokens that were rejected; ``bool`` of shape ``[len(rows)]``."""
    mask: npt.NDArray[np.bool_] = rows[:, 2] < 0
    return mask


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor-parallel rank's tensor is cut out of the whole.

    Args:
        dim: the dimension that is cut, counted from the end (-1 is the last).
        parts: the proportions of the fused parts *on one rank* (q|k|v heads, gate|up); see `trace.shards`.
        copies: for each part, how many neighbouring ranks hold the same piece (kv heads fewer than ranks).
    """

    dim: int
    parts: tuple[int, ...]
    copies: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A weight that an operator has. Its bytes are in the checkpoint, not in the trace.

    Args:
        name: within the operator: ``weight``, ``bias``.
        dtype, shape: as the operator holds it, before the engine repacks it.
        tensors: the checkpoint's tensors that it is loaded from, in order (q|k|v); empty if that is not known.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Site:
    """Where an operator sits, and what is known of it before it runs.

    Args:
        name: module path, ``model.layers.3.self_attn.qkv_proj``.
        operator: class name, ``QKVParallelLinear``.
        slot: stable hash of ``name``, by which taps name the site.
        inputs: parameter names of the tensor inputs, in order.
        layouts: keyed ``"in0"``, ``"out1"``: present where tensor parallelism cuts that tensor.
        config: what the operator was built with (``eps``, sizes), as far as it is plain data.
        parameters: its weights, by reference.
        role: what it does in a model (`engines.family.Role`); empty in older traces.
        formula: what it computes, where `comparator.oracle` has a reference of that name.
    """

    name: str
    operator: str
    slot: int
    inputs: tuple[str, ...] = ()
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    role: str = ""
    formula: str | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """One recorded tensor, read from the trace when asked for.

    Args:
        dtype: torch's name without the prefix: ``bfloat16``, ``float32``, ``int64``.
        shape: sizes.
        strides: in elements, as the operator saw them.
        load: returns the elements' bytes, one after the other in the order of the indices.
        storage: number of the memory it was in, within its step: values with the same number shared memory.
            -1 if that is not known.
        start: of its first element in that memory, in elements.
        version: how often that memory was seen to have been written before, within the step.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    load: Callable[[], bytes] = field(repr=False, compare=False)
    storage: int = -1
    start: int = 0
    version: int = 0

    def numpy(self) -> npt.NDArray[Any]:
        """The values as a contiguous array; bfloat16 and float8 in the dtypes of ml_dtypes, which must be
        installed."""
        return np.frombuffer(self.load(), numpy_dtype(self.dtype)).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Call:
    """One execution of an operator.

    Args:
        site: module path.
        number: 0 for the site's first call of the step, 1 for its second.
        inputs: tensors before the call, in order of the site's ``inputs``.
        outputs: tensors after the call.
        rows_in: row map of the inputs.
        rows_out: row map of the outputs.
        written: indices of inputs that the call changed in place without returning them, with their new values.
        fed: indices of the recorded operator's inputs whose recorded values this call was given; a norm that is
            fed the sum of x and residual was fed both. None in a pass that feeds nothing, and in older traces.
    """

    site: str
    number: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    rows_in: RowMap
    rows_out: RowMap
    written: Mapping[int, Value] = field(default_factory=dict)
    fed: tuple[int, ...] | None = None

    def values(self) -> Iterator[tuple[ValueSide, int, Value]]:
        """All its tensors, each with its side and index."""
        for index, value in enumerate(self.inputs):
            yield "in", index, value
        for index, value in enumerate(self.outputs):
            yield "out", index, value
        for index, value in self.written.items():
            yield "written", index, value

    def value(self, side: str, index: int) -> Value | None:
        """One of `values`; None if it has none there."""
        if side == "written":
            return self.written.get(index)
        values = self.outputs if side == "out" else self.inputs
        return values[index] if 0 <= index < len(values) else None

    def rows_of(self, side: str) -> RowMap:
        """Row map of the tensors of a side."""
        return self.rows_out if side == "out" else self.rows_in


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor of the model's that kernels take by its name: a parameter, or a buffer such as a table of cosines.

    Args:
        name: its path in the model, ``model.layers.0.mlp.down_proj.weight``.
        dtype, shape, strides: as it was when the recording began.
        digest: xxh3-128 of its elements' bytes, 32 hexadecimal digits; None where it was not taken.
        value: a buffer's elements, which no checkpoint has; None of a parameter.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    digest: str | None = None
    value: Value | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """An argument that is a constant of the model, or a view of one.

    Args:
        name: of the `Constant`.
        dtype, shape, strides: of the argument; strides in elements.
        start: of its first element in the constant's memory, in elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor that was not recorded.

    Args:
        dtype, shape: of it.
        reason: why, as a noun phrase: ``the engine's key/value cache``.
    """

    dtype: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """An argument that is neither a tensor nor plain data.

    Args:
        kind: ``dtype``, ``device``, ``layout``, ``memory_format``; else the name of its type.
        text: what it is, ``bfloat16``; of other types nothing.
        state: of a random number generator (kind ``Generator``), as it was before the call.
    """

    kind: str
    text: str = ""
    state: Value | None = None


Scalar: TypeAlias = "complex | float | int | str | None"
# An argument of a kernel; a tuple stands for a list.
Argument: TypeAlias = "Value | Named | LeftOut | Opaque | Scalar | tuple[Argument, ...]"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One call that PyTorch dispatched inside an operator, or a kernel launched past the dispatcher.

    Args:
        name: ``aten.mm.default``, ``_C.rms_norm.default``; ``triton.NAME`` for a kernel written in Triton, which
            is launched past the dispatcher; ``inductor.graph`` for a compiled function.
        schema: of the operator, as PyTorch writes it; of a Triton kernel its module, name and parameters,
            ``ops.scale(x_ptr, n, BLOCK: constexpr)`` (empty in older traces); of what else was not
            dispatched, empty.
        site: the operator's, in which it ran.
        call: which of the site's calls of the step.
        parent: place in the step's kernels of the one inside which it ran; -1: none.
        arguments: before the call, by position.
        keywords: before the call, by name; all of a Triton kernel's, and the ``grid`` of its launch.
        outputs: what it returned; a single value as a tuple of one.
        written: tensors that it changed in place, as it left them, by their number among the tensors of
            ``arguments`` and ``keywords``, counted in order.
        undeclared: those of ``written`` that the schema does not declare as written; none of a Triton kernel's,
            which has no such schema (all of them in older traces).
        failed: what it raised, if so.
    """

    name: str
    schema: str
    site: str
    call: int
    parent: int
    arguments: tuple[Argument, ...]
    keywords: Mapping[str, Argument]
    outputs: tuple[Argument, ...]
    written: Mapping[int, Value] = field(default_factory=dict)
    undeclared: tuple[int, ...] = ()
    failed: str = ""

    @property
    def given(self) -> tuple[Argument, ...]:
        """All arguments: by position, then by name."""
        return *self.arguments, *self.keywords.values()

    def by_name(self) -> dict[str, Argument]:
        """All arguments by the schema's names; by their place where a schema, a stranger's, does not say."""
        try:
            names = [argument.name for argument in schema_arguments(self.schema)]
        except ValueError:
            names = []
        names += [str(place) for place in range(len(names), len(self.arguments))]
        return {**dict(zip(names, self.arguments, strict=False)), **self.keywords}

    def tensor_names(self) -> list[str]:
        """The names of its tensor arguments, by the numbers that ``written`` has; ``key[1]`` in a list of two."""
        found: list[str] = []
        for name, given in self.by_name().items():
            count = sum(isinstance(a, Value | Named | LeftOut) for a in flatten([given]))
            found += [name] if count == 1 else [f"{name}[{i}]" for i in range(count)]
        return found


def is_triton(kernel: Kernel) -> bool:
    """Whether it is written in Triton, and was launched past the dispatcher."""
    return kernel.name.startswith("triton.")


def flatten(arguments: Iterable[Argument]) -> Iterator[Argument]:
    """Arguments with lists taken apart, in order."""
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from flatten(argument)
        else:
            yield argument


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled token.

    Args:
        key: the place of the new token.
        token: the token that the generation continued with (the golden one if it was forced).
        choice: what the sampler itself chose.
        logprob: reported natural-log probability of ``token``, or None if none was asked for.
    """

    key: RowKey
    token: int
    choice: int
    logprob: float | None


UNAPPLIED = "unapplied"


@dataclass(frozen=True, slots=True)
class Request:
    """A request as first seen in a step; kept if no workload describes the requests (a server).

    Args:
        request: its number.
        sequence: which of its samples.
        prompt_token_ids: the prompt.
        sampling: sampling parameters that are not the engine's defaults; under `UNAPPLIED`, the names of those
            that cannot be asked for again.
        id: the engine's own name of it, by which `trace.requests` says who asked; None in older traces.
    """

    request: int
    sequence: int
    prompt_token_ids: tuple[int, ...]
    sampling: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of the engine.

    Args:
        number: counts from 0 in each pass.
        rows: row map of the model's forward.
        calls: in order of execution (first tap seen).
        sampled: tokens that this step produced.
        notes: what could not be observed, as sentences.
        requests: those that start here, if no workload names them.
        weight_updates: how often the engine's weights had been updated before, within the pass.
        kernels: in the order in which they were called; none unless kernels were recorded.
        census: of the pass so far; of the first steps of an eager engine only.
        padded: how many rows the CUDA graphs have that the step replayed, padding included; 0: it replayed none.
        company: rows and requests that the engine computed in this step beside those that are recorded, and how
            many steps since the last recorded one had none that is; None: there were none, or it is not known.
    """

    number: int
    rows: RowMap
    calls: tuple[Call, ...]
    sampled: tuple[Sampled, ...]
    notes: tuple[str, ...] = ()
    requests: tuple[Request, ...] = ()
    weight_updates: int = 0
    kernels: Sequence[Kernel] = ()
    census: Census | None = None
    padded: int = 0
    company: tuple[int, int, int] | None = None


Side: TypeAlias = Literal["in", "out"]
