"""What the toy's operators do, by class name: globs, the first match counts.

Used when recording, and for older traces, which do not state the role of each site.
"""

from __future__ import annotations

from tracereplay.engines.roles import RoleTable

__all__ = ["OPERATORS"]

# (class names, role, the float64 reference that it computes, if there is one)
OPERATORS = RoleTable((
    ("VocabParallelEmbedding", "embedding", "embedding"),
    ("RMSNorm", "norm", "rms_norm"),
    ("*Linear", "linear", "linear"),
    ("RotaryEmbedding", "rotary", "rotary"),
    ("Attention", "attention", None),
    ("SiluAndMul", "gated", "silu_and_mul"),
    ("LogitsProcessor", "logits", "logits"),
    ("Sampler", "sampler", None),
))  # fmt: skip
