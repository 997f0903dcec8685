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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tracereplay.engines.vllm.guest.adapter import NOBODY, Adapter, wrap_method
from tracereplay.engines.vllm.guest.refusals import refuse_configuration, refuse_speculation
from tracereplay.engines.vllm.guest.v1 import given_beside, refuse_cuda_graphs
from tracereplay.errors import Unsupported
from tracereplay.event import RowKey, RowMap, make_rows
from tracereplay.hooks.kernels import unseen

__all__ = ["ROOM", "V2Adapter", "refuse_older_batches", "refuse_v2"]

ROOM = "vllm.v1.worker.gpu."  # where the runner is defined


def refuse_v2(runner: Any, config: Any) -> None:
    """Raises Unsupported, with a remedy, if this runner runs in a way that cannot be recorded."""
    refuse_older_batches(importlib.import_module(f"{ROOM}input_batch").InputBatch)
    refuse_configuration(config)
    refuse_speculation(config, runner="V2")
    refuse_cuda_graphs(runner, config)


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


@dataclass(frozen=True)
class _Batch:
    """What a step computes: the rows of its forward, and of each request the last one.

    Args:
        rows: of the model's forward, without padding.
        last: of the logits that tokens are sampled from.
        keys: of the sampled tokens.
        discarded: whether a request's token is thrown away, since its prompt is not complete.
    """

    rows: RowMap
    last: RowMap
    keys: list[RowKey]
    discarded: np.ndarray[Any, np.dtype[np.bool_]]

    def kept_keys(self) -> list[RowKey]:
        """Those of tokens that are kept; a key that is nobody's for others."""
        return [NOBODY if d else key for key, d in zip(self.keys, self.discarded, strict=True)]


_NOTHING = _Batch(make_rows([]), make_rows([]), [], np.zeros(0, dtype=bool))


class V2Adapter(Adapter):
    """See the module."""

    def model(self) -> torch.nn.Module:
        model: torch.nn.Module = self.runner.get_model()
        return model

    def attach(self) -> None:
        self._requests: dict[str, Any] = {}  # by the engine's id, as they were scheduled first
        self._batch = _NOTHING
        self._choice: torch.Tensor | None = None
        wrap_method(self.runner, "add_requests", self._add_requests)
        wrap_method(self.runner, "finish_requests", self._finish_requests)
        wrap_method(self.runner, "prepare_inputs", self._prepare_inputs)
        wrap_method(self.runner, "execute_model", self._execute_model)
        wrap_method(self.runner, "sample_tokens", self._sample_tokens)
        worker = self.runner.prompt_logprobs_worker
        for name in ("compute_prompt_logprobs", "compute_prompt_token_id_logprobs"):
            if hasattr(worker, name):
                wrap_method(worker, name, self._prompt_logprobs)
        wrap_method(self.runner.sampler, "sample", self._sample)
        _wrap_call(self.runner.sampler, self._sampler)

    # -- steps ------------------------------------------------------------------------------------------

    def _add_requests(self, original: Any, scheduler_output: Any) -> Any:
        for request in scheduler_output.scheduled_new_reqs:  # a preempted one comes again
            self._requests.setdefault(request.req_id, request)
        return original(scheduler_output)

    def _finish_requests(self, original: Any, scheduler_output: Any) -> Any:
        for engine_id in scheduler_output.finished_req_ids:
            self._requests.pop(engine_id, None)
        return original(scheduler_output)

    def _prepare_inputs(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        batch = original(*args, **kwargs)
        if self.recorder.recording:
            self._batch = self._read(batch)
            self.begin_step(self._batch.rows)
            self.set_logits_rows(self._batch.last, self._batch.last)
        return batch

    def _read(self, batch: Any) -> _Batch:
        rows: list[tuple[int, int, int]] = []
        last, keys = [], []
        starts = batch.num_computed_tokens_np
        ends = starts + batch.num_scheduled_tokens
        for engine_id, start, end in zip(batch.req_ids, starts.tolist(), ends.tolist(), strict=True):
            asked = self._requests[engine_id]
            request, sequence = self.number(
                engine_id,
                asked.prompt_token_ids or (),
                asked.sampling_params,
                asked.lora_request,
                given_beside(asked),
            )
            rows.extend((request, sequence, position) for position in range(start, end))
            last.append((request, sequence, end - 1))
            keys.append(RowKey(request, sequence, end))
        return _Batch(make_rows(rows), make_rows(last), keys, ends < batch.prefill_len_np)

    def _execute_model(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if result is not None:  # None: sample_tokens continues the step
            self.recorder.end_step()
        return result

    def _sample_tokens(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self.recorder.end_step()
        return result

    # -- logits and tokens ------------------------------------------------------------------------------

    def _prompt_logprobs(
        self, original: Any, compute: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Prompt logprobs use slices of the step's hidden states."""
        if not self.recorder.recording:
            return original(compute, hidden, *args, **kwargs)
        return original(self.slices_of(hidden, self._batch.rows, compute), hidden, *args, **kwargs)

    def _sample(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        sampled, logits = original(*args, **kwargs)
        batch = self._batch
        if self.recorder.recording and len(sampled) == len(batch.keys):
            with unseen():
                self._choice = sampled.to(torch.int64).view(-1).clone()
                sampled = self.force(batch.kept_keys(), sampled)
        return sampled, logits

    def _sampler(self, original: Any, logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.recorder.recording:
            return original(logits, *args, **kwargs)
        batch = self._batch
        self.recorder.set_rows(self._sampler_slot, batch.last, batch.last)
        given = self.recorder.feed(logits, self._sampler_slot, 0)
        with self.recorder.watch_kernels(self._sampler_slot):
            output = original(logits if given is None else given, *args, **kwargs)
        if self._choice is not None:
            tensors = output.logprobs_tensors
            tokens = output.sampled_token_ids.view(-1).to(torch.int64)
            logprobs = None if tensors is None else tensors.logprobs[:, 0].to(torch.float32)
            self.report_kept(batch.last, batch.keys, batch.discarded, tokens, self._choice, logprobs)
            self._choice = None
        return output


def _wrap_call(owner: Any, wrapper: Any) -> None:
    """Lets calls of ``owner`` go through ``wrapper``; Python looks for the method of a call in the class only."""
    kind = type(owner)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(functools.partial(kind.__call__, self), *args, **kwargs)

    owner.__class__ = type(kind.__name__, (kind,), {"__call__": called, "__module__": kind.__module__})
