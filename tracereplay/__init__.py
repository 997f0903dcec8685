"""tracereplay: record every operator of an LLM generation, replay it, and find the operator that differs.

for step in tracereplay.open_trace("golden.trace"):
    for call in step.calls:
        print(step.number, call.site, [value.numpy().shape for value in call.outputs])
"""

from tracereplay.trace import Trace, open_trace

__all__ = ["Trace", "open_trace"]
