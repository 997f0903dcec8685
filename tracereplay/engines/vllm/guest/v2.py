"""vLLM's Model Runner V2 (`vllm.v1.worker.gpu.model_runner`, on a CPU a bare subclass of it).

It has no input batch that lives on: what is scheduled becomes an ``InputBatch`` in ``prepare_inputs``, where a
step begins here. Its sampler is called as a whole, chooses tokens in ``sample``, and takes logprobs of them.

    add_requests ─▶ prepare_inputs ─▶ model ─▶ compute_logits ─▶ sampler(sample) ─▶ prompt logprobs ─▶ next step
                     │ begin_step                                 │ feed  │ force                │ end_step

Positions are known on the host when a step is prepared, under asynchronous scheduling too: without drafts every
request that is scheduled gets one token.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Any

import torch

from tracereplay.engines.vllm.guest.adapter import wrap_method
from tracereplay.engines.vllm.guest.numbering import NOBODY
from tracereplay.engines.vllm.guest.refusals import refuse_configuration, refuse_speculation
from tracereplay.engines.vllm.guest.sampled_steps import SampledSteps, given_beside
from tracereplay.engines.vllm.guest.speculation import Batch
from tracereplay.errors import Unsupported

__all__ = ["ROOM", "V2Adapter", "refuse_older_batches", "refuse_v2"]

ROOM = "vllm.v1.worker.gpu."  # where the runner is defined


def refuse_v2(runner: Any, config: Any) -> None:
    """Raises Unsupported, with a remedy, if this runner runs in a way that cannot be recorded."""
    refuse_older_batches(importlib.import_module(f"{ROOM}input_batch").InputBatch)
    refuse_configuration(config)
    refuse_speculation(config, runner="V2")


def refuse_older_batches(kind: type) -> None:
    """Raises Unsupported for an ``InputBatch`` (0.18.1's) that does not say on the host which positions it has."""
    names = {field.name for field in dataclasses.fields(kind)}
    missing = {"num_computed_tokens_np", "prefill_len_np"} - names
    if missing:
        raise Unsupported(
            "Model Runner V2 of this release cannot be recorded, since its batches have no "
            f"{' and no '.join(sorted(missing))}; set VLLM_USE_V2_MODEL_RUNNER=0 "
            "(engine add ... --env VLLM_USE_V2_MODEL_RUNNER=0), or use vLLM 0.27 or later."
        )


class V2Adapter(SampledSteps):
    """See the module."""

    def attach(self) -> None:
        super().attach()
        self._requests: dict[str, Any] = {}  # by the engine's id, as they were scheduled first
        self._new: set[str] = set()  # ids of those that are scheduled for the first time
        wrap_method(self.runner, "add_requests", self._add_requests)
        wrap_method(self.runner, "finish_requests", self._finish_requests)
        wrap_method(self.runner, "prepare_inputs", self._prepare_inputs)
        worker = self.runner.prompt_logprobs_worker
        for name in ("compute_prompt_logprobs", "compute_prompt_token_id_logprobs"):
            if hasattr(worker, name):
                wrap_method(worker, name, self._prompt_logprobs)
        _wrap_call(self.runner.sampler, self._sampler)

    # -- steps ------------------------------------------------------------------------------------------

    def _add_requests(self, original: Any, scheduler_output: Any) -> Any:
        self._new = {r.req_id for r in scheduler_output.scheduled_new_reqs} - self._requests.keys()
        for request in scheduler_output.scheduled_new_reqs:  # a preempted one comes again
            self._requests.setdefault(request.req_id, request)
        return original(scheduler_output)

    def _finish_requests(self, original: Any, scheduler_output: Any) -> Any:
        for engine_id in scheduler_output.finished_req_ids:
            self._requests.pop(engine_id, None)
        return original(scheduler_output)

    def _prepare_inputs(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        batch = original(*args, **kwargs)
        self.attend([i for i in self._requests if i not in self._new])
        if self.recorder.recording:
            self.settle(self._read(batch))
            self.begin()
        return batch

    def _read(self, batch: Any) -> Batch:
        keys = [self.numbering.find(engine_id) or self._begun_by(engine_id) for engine_id in batch.req_ids]
        found = Batch(others=keys.count(NOBODY))
        if found.others and found.others == len(keys):
            return found
        starts = batch.num_computed_tokens_np
        ends = starts + batch.num_scheduled_tokens
        discarded = ends < batch.prefill_len_np
        for key, start, end, away in zip(keys, starts.tolist(), ends.tolist(), discarded.tolist(), strict=True):
            found.add(*key, range(start, end), (), discarded=away)
        return found

    def _begun_by(self, engine_id: str) -> tuple[int, int]:
        asked = self._requests[engine_id]
        beside = given_beside(asked)
        return self.number(
            engine_id, asked.prompt_token_ids or (), asked.sampling_params, asked.lora_request, beside
        )

    # -- logits and tokens ------------------------------------------------------------------------------

    def _prompt_logprobs(
        self, original: Any, compute: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Prompt logprobs use slices of the step's hidden states."""
        if not self.recorder.recording:
            return original(compute, hidden, *args, **kwargs)
        return original(self.slices_of(hidden, self._rows, compute), hidden, *args, **kwargs)


def _wrap_call(owner: Any, wrapper: Any) -> None:
    """Lets calls of ``owner`` go through ``wrapper``; Python looks for the method of a call in the class only."""
    kind = type(owner)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(functools.partial(kind.__call__, self), *args, **kwargs)

    owner.__class__ = type(kind.__name__, (kind,), {"__call__": called, "__module__": kind.__module__})
