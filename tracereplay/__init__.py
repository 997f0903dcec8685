"""tracereplay: record every operator of an LLM generation, replay it, and find the operator that differs.

for step in tracereplay.open_trace("golden.trace"):
    for call in step.calls:
        print(step.number, call.site, [value.numpy().shape for value in call.outputs])
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracereplay.checks import check
    from tracereplay.trace import Trace, open_trace
else:
    from tracereplay.lazily import imported_on_use

    __getattr__ = imported_on_use(
        __name__,
        {
            "tracereplay.checks": ("check",),
            "tracereplay.trace": ("Trace", "open_trace"),
        },
    )

__all__ = ["Trace", "check", "open_trace"]
