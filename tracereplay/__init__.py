"""tracereplay: record every operator of an LLM generation, replay it, and find the operator that differs.

for step in tracereplay.open_trace("golden.trace"):
    for call in step.calls:
        print(step.number, call.site, [value.numpy().shape for value in call.outputs])
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracereplay.api import compare, record, replay
    from tracereplay.checks import check
    from tracereplay.comparator import Policy, load_policy
    from tracereplay.launch.own import OwnRecording, recording
    from tracereplay.trace import Trace, open_trace
    from tracereplay.verdict import Verdict
    from tracereplay.workload import Prompt, Workload
else:
    from tracereplay.lazily import imported_on_use

    __getattr__ = imported_on_use(
        __name__,
        {
            "tracereplay.api": ("compare", "record", "replay"),
            "tracereplay.checks": ("check",),
            "tracereplay.comparator": ("Policy", "load_policy"),
            "tracereplay.launch.own": ("OwnRecording", "recording"),
            "tracereplay.trace": ("Trace", "open_trace"),
            "tracereplay.verdict": ("Verdict",),
            "tracereplay.workload": ("Prompt", "Workload"),
        },
    )

__all__ = [
    "OwnRecording",
    "Policy",
    "Prompt",
    "Trace",
    "Verdict",
    "Workload",
    "check",
    "compare",
    "load_policy",
    "open_trace",
    "record",
    "recording",
    "replay",
]
