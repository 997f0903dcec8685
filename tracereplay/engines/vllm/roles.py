"""What vLLM's operators do, by class name, and torch's that its models use: globs, the first match counts.

Used when recording, and for older traces, which do not state the role of each site.
"""

from __future__ import annotations

from tracereplay.engines.roles import RoleTable

__all__ = ["OPERATORS"]

# (class names, role, the float64 reference that it computes, if there is one)
OPERATORS = RoleTable((
    ("Sampler", "sampler", None),
    ("LogitsProcessor", "logits", "logits"),
    ("*LogitsProcessor*", "logits", None),
    ("MambaMixer* *Mixer* *ShortConv* *GatedDeltaNet* *LinearAttention*", "mixer", None),
    ("*Attention*", "attention", None),
    ("GemmaRMSNorm", "norm", "gemma_rms_norm"),
    ("RMSNorm", "norm", "rms_norm"),
    ("*Norm *Norm[0-9]* *NormGated", "norm", None),
    ("GateLinear", "router", None),
    ("FusedMoE* *MoERunner* *MoE", "experts", None),
    (
        "QKVParallelLinear MergedColumnParallelLinear ColumnParallelLinear RowParallelLinear "
        "ReplicatedLinear Linear",
        "linear", "linear",
    ),
    ("*Linear*", "linear", None),
    ("RotaryEmbedding", "rotary", "rotary"),
    ("*Rotary*", "rotary", None),
    ("VocabParallelEmbedding", "embedding", "embedding"),
    ("*Embedding *EmbeddingWithLoRA ParallelLMHead", "embedding", None),
    ("SiluAndMul", "gated", "silu_and_mul"),
    ("GeluAndMul", "gated", "gelu_and_mul"),
    ("*AndMul *MulAndSilu", "gated", None),
    ("*GELU* *Gelu* SiLU *ReLU* *Activation* XIELU *Softcap*", "activation", None),
    ("Conv[0-9]d* *Conv", "convolution", None),
))  # fmt: skip
