"""Who asked for what: notes, in the process that takes requests, the ids, times and ends that no worker sees.

Engines name requests by ids of their own (a random suffix, the number of a sample); the front end knows what they
stand for. V1's ``OutputProcessor`` is where every request enters (of a server, of each of several front ends, of
``LLM``) and where its end is decided, stop texts included. V0 has all of it in its engine.

Nothing of this may disturb the engine: whatever goes wrong is counted, and the request goes on.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tracereplay.engines.vllm.guest.fields import SERVING, kept_fields, watch_serving
from tracereplay.engines.vllm.guest.front import arrived, front
from tracereplay.trace.requests import Identity, bounded

__all__ = ["FRONTS", "watch_front"]

_V1, _V0 = "vllm.v1.engine.output_processor", "vllm.engine.llm_engine"
FRONTS = (_V1, _V0, *SERVING)
_CHILD = "_parallel_sample_"


def watch_front(module: ModuleType) -> None:
    """Notes the requests that this process takes from now on.

    Args:
        module: one of `FRONTS`.
    """
    if getattr(module, "_tracereplay", False):
        return
    if module.__name__ == _V1 and hasattr(module, "OutputProcessor"):
        _watch_v1(module)
    elif module.__name__ == _V0 and hasattr(module, "LLMEngine"):
        _watch_v0(module)
    elif module.__name__ in SERVING:
        watch_serving(module)
    else:
        return
    module._tracereplay = True  # type: ignore[attr-defined]


def _after(kind: Any, name: str, note: Callable[..., None]) -> None:
    """Calls ``note(self, result, *arguments)`` after each call of a method, which it never disturbs."""
    original = getattr(kind, name, None)
    if original is None:
        return

    @functools.wraps(original)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        try:
            note(self, result, *args, **kwargs)
        except Exception:
            with contextlib.suppress(Exception):  # not even there being nobody to count
                front().failures += 1
        return result

    setattr(kind, name, called)


# -- V1 -----------------------------------------------------------------------------------------------------


def _watch_v1(module: ModuleType) -> None:
    _after(module.OutputProcessor, "add_request", _taken)
    _after(module.OutputProcessor, "process_outputs", _looked)
    _after(module.RequestState, "_new_completion_output", _given)
    _after(module.OutputProcessor, "abort_requests", _aborted)
    _after(module.OutputProcessor, "propagate_error", _failed)
    _after(module.OutputProcessor, "_finish_request", _finished)


def _taken(
    self: Any, result: Any, request: Any, prompt: Any = None, parent_req: Any = None, request_index: int = 0,
    *args: Any, **kwargs: Any,
) -> None:  # fmt: skip
    sampling = request.sampling_params
    if sampling is None or not front().takes(request.request_id, sampling):  # None: it asks for no tokens
        return
    named = getattr(request, "external_req_id", None)
    name = named or (request.request_id if parent_req is None else parent_req.request_id)
    ids = request.prompt_token_ids
    front().begun(
        Identity(
            bounded(request.request_id), bounded(str(name)), arrived(request.arrival_time),
            sample=int(request_index), adapter=_adapter(request.lora_request),
            priority=int(getattr(request, "priority", 0) or 0), prompt=None if ids is None else len(ids),
            fields=kept_fields(),
        )
    )  # fmt: skip


def _given(self: Any, result: Any, *args: Any, **kwargs: Any) -> None:
    if result.finish_reason is not None:
        tokens = self.detokenizer.num_output_tokens() if hasattr(self.detokenizer, "num_output_tokens") else None
        front().ended(self.request_id, str(result.finish_reason), result.stop_reason, tokens)


def _finished(self: Any, result: Any, req_state: Any, *args: Any, **kwargs: Any) -> None:
    """One that ends without another output: its prompt came in pieces, and the last one was empty."""
    front().ended(req_state.request_id, "stop")


def _looked(self: Any, result: Any, *args: Any, **kwargs: Any) -> None:
    front().look(often=True)


def _aborted(self: Any, result: Any, *args: Any, **kwargs: Any) -> None:
    front().all_ended(result, "abort")


def _failed(self: Any, result: Any, *args: Any, **kwargs: Any) -> None:
    front().all_ended(self.request_states, "error")


# -- V0 -----------------------------------------------------------------------------------------------------

_groups: dict[str, Any] = {}  # the engine's own, of requests that have not ended


def _watch_v0(module: ModuleType) -> None:
    _after(module.LLMEngine, "_add_processed_request", _taken_v0)
    _after(module.LLMEngine, "_process_model_outputs", _given_v0)
    _after(module.LLMEngine, "abort_request", _aborted_v0)


def _taken_v0(
    self: Any, result: Any, request_id: str, *args: Any, arrival_time: float = 0.0, lora_request: Any = None,
    priority: int = 0, **kwargs: Any,
) -> None:  # fmt: skip
    if result is None:  # of several samples, each of which comes by itself
        return
    name, _, sample = request_id.rpartition(_CHILD) if _CHILD in request_id else (request_id, "", "0")
    sampling = result.sampling_params
    if sampling is None or not front().takes(request_id, sampling):
        return
    _groups[request_id] = result
    front().begun(
        Identity(
            bounded(request_id), bounded(name), arrived(arrival_time), sample=int(sample),
            adapter=_adapter(lora_request), priority=int(priority or 0), prompt=len(result.prompt_token_ids or ()),
        )
    )  # fmt: skip


def _given_v0(self: Any, result: Any, *args: Any, **kwargs: Any) -> None:
    from vllm.sequence import SequenceStatus

    for request_id, group in list(_groups.items()):
        if group.is_finished():
            del _groups[request_id]
            sequence = group.seqs[0]
            reason = SequenceStatus.get_finished_reason(sequence.status) or "error"
            front().ended(request_id, str(reason), sequence.stop_reason, sequence.get_output_len())


def _aborted_v0(self: Any, result: Any, request_id: Any, *args: Any, **kwargs: Any) -> None:
    for name in [request_id] if isinstance(request_id, str) else list(request_id):
        for known in [known for known in _groups if known.rpartition(_CHILD)[0] == name or known == name]:
            group = _groups.pop(known)
            front().ended(known, "abort", None, group.seqs[0].get_output_len())


def _adapter(request: Any) -> str:
    return "" if request is None else bounded(str(getattr(request, "lora_name", "") or ""))
