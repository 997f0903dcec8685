"""Which operators can be rebuilt, from which configurations, and on which inputs. Needs neither torch nor vLLM.

Both sides check: the analyst's before anything is sent, and the child because it trusts no request. vLLM's own
kernels do not validate their arguments, so shapes and dtypes are checked here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tracereplay.alone.child.service import NotReplayable
from tracereplay.engines.family import Plan, Tensor
from tracereplay.engines.vllm.alone.fields import LARGEST_SIZE, Fields

__all__ = ["FLOATS", "KNOWN", "plan"]

FLOATS = ("bfloat16", "float16", "float32")
MOST_ELEMENTS = 1 << 30  # per weight
MOST_TABLE = 1 << 27  # elements of a table of cosines and sines: a million positions of 128


Weights: TypeAlias = Mapping[str, Tensor]
Inputs: TypeAlias = "Sequence[Tensor | None]"


_LAYERS = "vllm.model_executor.layers"
_NORMS = (f"{_LAYERS}.layernorm",)
_ACTIVATIONS = (f"{_LAYERS}.activation",)
_LINEARS = (f"{_LAYERS}.linear",)
_EMBEDDINGS = (f"{_LAYERS}.vocab_parallel_embedding",)
_ROTARIES = (f"{_LAYERS}.rotary_embedding", f"{_LAYERS}.rotary_embedding.llama3_rope")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A recorded operator to be rebuilt."""

    operator: str
    fields: Fields
    dtype: str
    weights: Weights
    taken: set[str] = field(default_factory=set)

    def weight(self, name: str, shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """The shape of a required weight, which must be ``shape`` if given."""
        self.taken.add(name)
        found = self.weights.get(name)
        if found is None:
            raise NotReplayable(f"its recording names no {name} of this {self.operator}")
        if found.dtype not in FLOATS:
            raise NotReplayable(f"its {name} is of {found.dtype}, which is not rebuilt")
        if shape is not None and tuple(found.shape) != shape:
            raise NotReplayable(f"its {name} has the shape {tuple(found.shape)}; {shape} was expected")
        if math.prod(found.shape) > MOST_ELEMENTS:
            raise NotReplayable(f"its {name} has more than {MOST_ELEMENTS} elements")
        return tuple(found.shape)


def plan(operator: str, config: Mapping[str, Any], dtype: str, weights: Weights) -> Plan:
    """How to rebuild an operator.

    Args:
        operator: class name, as recorded.
        config: as recorded.
        dtype: in which the recording engine computed.
        weights: its parameters, whole.

    Raises:
        NotReplayable: it is not supported, or its configuration is invalid.
    """
    if operator not in KNOWN:
        raise NotReplayable(f"operators of the class {str(operator)[:60]} are not rebuilt")
    if dtype not in FLOATS:
        raise NotReplayable(f"operators are rebuilt in {', '.join(FLOATS)}, not in {str(dtype)[:40]}")
    fields = Fields(operator, config)
    if fields.size("tp_size", 1) > 1:
        raise NotReplayable(f"it was recorded with tensor parallel size {fields.size('tp_size')}")
    asked = _Asked(operator, fields, dtype, weights)
    found = KNOWN[operator](asked)
    if more := sorted(set(weights) - asked.taken):
        raise NotReplayable(f"it has a parameter {more[0][:60]!r}, which this operator is not rebuilt with")
    return found


# --- norms ---


def _norm(asked: _Asked) -> Plan:
    fields = asked.fields
    size = fields.size("hidden_size")
    arguments: dict[str, Any] = {"hidden_size": size, "eps": fields.number("variance_epsilon", least=0, most=1)}
    if fields.has("variance_size_override"):
        arguments["var_hidden_size"] = fields.size("variance_size_override", most=size)
    if not fields.flag("has_weight", True):
        arguments["has_weight"] = False
    else:
        asked.weight("weight", (size,))
    return Plan(
        "norm", asked.operator, _dtype(asked), _NORMS, arguments, lambda inputs: _check_norm(inputs, size, asked)
    )


def _gemma_norm(asked: _Asked) -> Plan:
    (size,) = _vector(asked)
    arguments = {"hidden_size": size, "eps": asked.fields.number("variance_epsilon", least=0, most=1)}
    return Plan(
        "norm", asked.operator, _dtype(asked), _NORMS, arguments, lambda inputs: _check_norm(inputs, size, asked)
    )


def _vector(asked: _Asked) -> tuple[int, ...]:
    shape = asked.weight("weight")
    if len(shape) != 1 or not 1 <= shape[0] <= LARGEST_SIZE:
        raise NotReplayable(f"its weight has the shape {shape}; one dimension was expected")
    return shape


def _check_norm(inputs: Inputs, size: int, asked: _Asked) -> None:
    x, *rest = _tensors(inputs, 1, 2)
    _last(x, size)
    _float(x, _dtype(asked))
    for residual in rest:
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise NotReplayable(
                f"its residual is {residual.dtype} of shape {residual.shape}, its input {x.dtype} of {x.shape}"
            )


# --- activations ---


def _activation(asked: _Asked) -> Plan:
    return Plan("activation", asked.operator, asked.dtype, _ACTIVATIONS, {}, _check_halves)


def _gelu(asked: _Asked) -> Plan:
    arguments = {"approximate": asked.fields.choice("approximate", ("none", "tanh"))}
    return Plan("activation", asked.operator, asked.dtype, _ACTIVATIONS, arguments, _check_halves)


def _elementwise(asked: _Asked) -> Plan:
    return Plan(
        "activation",
        asked.operator,
        asked.dtype,
        _ACTIVATIONS,
        {},
        lambda inputs: _float(_tensors(inputs, 1, 1)[0]),
    )


def _check_halves(inputs: Inputs) -> None:
    (x,) = _tensors(inputs, 1, 1)
    _float(x)
    if not x.shape or x.shape[-1] % 2:
        raise NotReplayable(f"its input has the shape {x.shape}, whose last size cannot be halved")


# --- linear layers ---


def _linear(asked: _Asked) -> Plan:
    """Layers with one matrix, fused or not: it is multiplied as a whole."""
    fields = asked.fields
    sizes = fields.size("input_size"), fields.size("output_size")
    arguments: dict[str, Any] = {"input_size": sizes[0], "output_size": sizes[1]}
    if asked.operator == "MergedColumnParallelLinear":
        arguments = {"input_size": sizes[0], "output_sizes": [sizes[1]]}
    if asked.operator == "RowParallelLinear":
        arguments["input_is_parallel"] = fields.flag("input_is_parallel", True)
        arguments["reduce_results"] = fields.flag("reduce_results", True)
    elif asked.operator != "ReplicatedLinear":
        arguments["gather_output"] = fields.flag("gather_output", False)
    return _matrix(asked, arguments, *sizes)


def _qkv(asked: _Asked) -> Plan:
    fields = asked.fields
    size, head = fields.size("hidden_size"), fields.size("head_size", most=1 << 16)
    heads = fields.size("total_num_heads", most=1 << 16)
    kv_heads = fields.size("total_num_kv_heads", heads, most=heads)
    values = fields.size("v_head_size", head, most=1 << 16)
    output = (heads + kv_heads) * head + kv_heads * values
    arguments: dict[str, Any] = {"hidden_size": size, "head_size": head, "total_num_heads": heads,
                                 "total_num_kv_heads": kv_heads}  # fmt: skip
    if values != head:
        arguments["v_head_size"] = values
    return _matrix(asked, arguments, size, output)


def _matrix(asked: _Asked, arguments: dict[str, Any], input_size: int, output_size: int) -> Plan:
    asked.weight("weight", (output_size, input_size))
    arguments["bias"] = "bias" in asked.weights
    if arguments["bias"]:
        asked.weight("bias", (output_size,))
    arguments["skip_bias_add"] = asked.fields.flag("skip_bias_add", False)
    arguments["return_bias"] = asked.fields.flag("return_bias", True)
    dtype = _dtype(asked)

    def check(inputs: Inputs) -> None:
        (x,) = _tensors(inputs, 1, 1)
        _last(x, input_size)
        _float(x, dtype)

    return Plan("linear", asked.operator, dtype, _LINEARS, arguments, check)


# --- embedding ---


def _embedding(asked: _Asked) -> Plan:
    fields = asked.fields
    rows, size = fields.size("num_embeddings"), fields.size("embedding_dim")
    padding = fields.size("padding_size", 64, most=1 << 16)
    original = fields.size("org_vocab_size", rows, most=rows)
    shape = asked.weight("weight")
    if len(shape) != 2 or shape[1] != size or not original <= shape[0] <= rows + 2 * padding:
        raise NotReplayable(f"its weight has the shape {shape}; ({original}, {size}) or more was expected")
    arguments = {"num_embeddings": rows, "embedding_dim": size, "org_num_embeddings": original,
                 "padding_size": padding}  # fmt: skip

    def check(inputs: Inputs) -> None:
        (ids,) = _tensors(inputs, 1, 1)
        _integers(ids)

    return Plan("embedding", asked.operator, _dtype(asked), _EMBEDDINGS, arguments, check, rows)


# --- rotary embedding ---


def _rotary(asked: _Asked) -> Plan:
    return _positions(asked, {})


def _llama3_rotary(asked: _Asked) -> Plan:
    fields = asked.fields
    more = {name: fields.number(name, least=1e-6, most=1e9)
            for name in ("scaling_factor", "low_freq_factor", "high_freq_factor")}  # fmt: skip
    return _positions(asked, {**more, "orig_max_position": fields.size("orig_max_position", most=1 << 26)})


def _positions(asked: _Asked, more: dict[str, Any]) -> Plan:
    fields = asked.fields
    head = fields.size("head_size", most=1 << 16)
    turned = fields.size("rotary_dim", most=head)
    positions = fields.size("max_position_embeddings", most=1 << 26)
    if turned % 2 or turned * positions > MOST_TABLE:
        raise NotReplayable(f"a table for {positions} positions of {turned} numbers is not made")
    arguments = {
        "head_size": head, "rotary_dim": turned, "max_position_embeddings": positions,
        "base": fields.number("base", least=1e-6, most=1e15), "is_neox_style": fields.flag("is_neox_style"),
    }  # fmt: skip

    def check(inputs: Inputs) -> None:
        places, *turning = _tensors(inputs, 2, 3)
        _integers(places, ("int64",))
        if len(places.shape) != 1:
            raise NotReplayable(f"its positions have the shape {places.shape}; one dimension was expected")
        for x in turning:
            _float(x, turning[0].dtype)
            if len(x.shape) != 2 or x.shape[0] != places.shape[0] or x.shape[1] % head or not x.shape[1]:
                raise NotReplayable(f"an input has the shape {x.shape}; [rows, heads * {head}] was expected")

    return Plan("rotary", asked.operator, asked.dtype, _ROTARIES, {**arguments, **more}, check, positions)


# --- attention ---


def _attention(asked: _Asked) -> Plan:
    """Attention, over a key/value cache of its own (`attention`); calls also need their rows."""
    fields = asked.fields
    for name in ("sliding_window", "logits_soft_cap", "alibi", "has_sink", "use_mla"):
        if fields.has(name) and fields.flag_or_number(name):
            raise NotReplayable(f"attention with {name} is not rebuilt")
    fields.choice("attn_type", ("decoder",), "decoder")
    fields.choice("kv_cache_dtype", ("auto",), "auto")
    heads, head = fields.size("num_heads", most=1 << 12), fields.size("head_size", most=1 << 12)
    kv_heads = fields.size("num_kv_heads", heads, most=heads)
    if heads % kv_heads:
        raise NotReplayable(f"its {heads} heads cannot share {kv_heads}")
    arguments = {
        "num_heads": heads, "head_size": head, "scale": fields.number("scale", least=1e-9, most=1e9),
        "num_kv_heads": kv_heads,
    }  # fmt: skip

    def check(inputs: Inputs) -> None:
        query, *both = _tensors(inputs, 3, 3)
        _float(query, asked.dtype)
        _last(query, heads * head)
        for x in both:
            _float(x, asked.dtype)
            if tuple(x.shape) != (query.shape[0], kv_heads * head) or len(query.shape) != 2:
                raise NotReplayable(f"an input has the shape {x.shape}; [rows, kv heads * {head}] was expected")

    return Plan("attention", asked.operator, asked.dtype, (), arguments, check)


# --- checks of inputs ---


def _tensors(inputs: Inputs, least: int, most: int) -> list[Tensor]:
    found = [x for x in inputs if x is not None]
    if len(found) < len(inputs) or not least <= len(found) <= most:
        counts = str(least) if least == most else f"{least} or {most}"
        raise NotReplayable(f"it was given {len(found)} tensors of {len(inputs)} inputs; {counts} were expected")
    return found


def _last(x: Tensor, size: int) -> None:
    if not x.shape or x.shape[-1] != size:
        raise NotReplayable(f"its input has the shape {x.shape}; a last size of {size} was expected")


def _float(x: Tensor, dtype: str | None = None) -> None:
    if x.dtype not in FLOATS or x.dtype != (dtype or x.dtype):
        raise NotReplayable(f"its input is of {x.dtype}; {dtype or ' or '.join(FLOATS)} was expected")


def _integers(x: Tensor, among: Sequence[str] = ("int64", "int32")) -> None:
    if x.dtype not in among:
        raise NotReplayable(f"its input is of {x.dtype}; {' or '.join(among)} was expected")


def _dtype(asked: _Asked) -> str:
    """The weights' dtype, which may differ from the engine's."""
    found = {weight.dtype for weight in asked.weights.values()}
    if len(found) > 1:
        raise NotReplayable(f"its parameters are of {' and '.join(sorted(found))}")
    return found.pop() if found else asked.dtype


KNOWN: Mapping[str, Callable[[_Asked], Plan]] = {
    "Attention": _attention,
    "RMSNorm": _norm,
    "GemmaRMSNorm": _gemma_norm,
    "SiluAndMul": _activation,
    "MulAndSilu": _activation,
    "GeluAndMul": _gelu,
    "NewGELU": _elementwise,
    "FastGELU": _elementwise,
    "QuickGELU": _elementwise,
    "ReLUSquaredActivation": _elementwise,
    "ReplicatedLinear": _linear,
    "ColumnParallelLinear": _linear,
    "MergedColumnParallelLinear": _linear,
    "RowParallelLinear": _linear,
    "QKVParallelLinear": _qkv,
    "VocabParallelEmbedding": _embedding,
    "RotaryEmbedding": _rotary,
    "Llama3RotaryEmbedding": _llama3_rotary,
}
