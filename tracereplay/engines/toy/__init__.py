"""A toy engine: two decoder layers in numpy that record and replay real traces in milliseconds.

It stands in for an inference engine in README examples, tests and fixtures, and is a family of engines of its own
(`family`, `driver`). Sites and operators are named as in a Llama, requests are batched continuously, prompts may
be prefilled in chunks, and three "versions" round differently, as engine generations do. A `Flaw` plants a fault
in one operator or on the way to one, so that a verdict can be checked against what is known.

    >>> golden = record(workload(), Path("golden.trace"))
    >>> candidate = replay(golden, Path("candidate.trace"), flaw=Flaw("model.norm", "scale"))
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracereplay.engines.toy.flaws import EDGE_FLAWS, OPERATOR_FLAWS, Flaw
    from tracereplay.engines.toy.runs import record, replay, workload
    from tracereplay.engines.toy.weights import HEAD, HEADS, KV_HEADS, LAYERS, VOCABULARY, Update
else:
    from tracereplay.lazily import imported_on_use

    __getattr__ = imported_on_use(
        __name__,
        {
            "tracereplay.engines.toy.flaws": ("EDGE_FLAWS", "OPERATOR_FLAWS", "Flaw"),
            "tracereplay.engines.toy.runs": ("record", "replay", "workload"),
            "tracereplay.engines.toy.weights": ("HEAD", "HEADS", "KV_HEADS", "LAYERS", "VOCABULARY", "Update"),
        },
    )

__all__ = [
    "EDGE_FLAWS",
    "HEAD",
    "HEADS",
    "KV_HEADS",
    "LAYERS",
    "OPERATOR_FLAWS",
    "VOCABULARY",
    "Flaw",
    "Update",
    "record",
    "replay",
    "workload",
]
