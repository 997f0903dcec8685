"""vLLM's V1 engine: rows from the input batch, tokens at ``Sampler.sample``.

Works for ``GPUModelRunner`` and the CPU runner that inherits from it (0.8.5 to 0.32). A step begins after
``_prepare_inputs``, when the batch is final, and ends with ``sample_tokens`` (or with ``execute_model``, in
versions that sample there).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tracereplay.engines.vllm.guest.adapter import Adapter, wrap_method
from tracereplay.engines.vllm.guest.refusals import refuse_configuration
from tracereplay.errors import Unsupported
from tracereplay.event import RowKey, RowMap, make_rows
from tracereplay.hooks.kernels import unseen

__all__ = ["V1Adapter", "has_beside", "refuse_cuda_graphs", "refuse_v1"]


def refuse_v1(runner: Any, config: Any) -> None:
    """Raises Unsupported, with a remedy, if this V1 engine runs in a way that cannot be recorded."""
    refuse_configuration(config)
    refuse_cuda_graphs(runner, config)


def refuse_cuda_graphs(runner: Any, config: Any) -> None:
    """Raises Unsupported if the engine replays CUDA graphs."""
    compilation = config.compilation_config
    mode = getattr(compilation, "cudagraph_mode", None)
    graphs = bool(getattr(compilation, "use_cudagraph", False)) if mode is None else mode.name != "NONE"
    if runner.device.type == "cuda" and graphs and not config.model_config.enforce_eager:
        raise Unsupported(
            "CUDA graphs cannot be recorded yet, since a replayed graph runs no host code; "
            'give --set compilation_config={"cudagraph_mode":"NONE"} to keep compilation without graphs.'
        )


def has_beside(state: Any, name: str) -> bool:
    """Whether a request has images, sound or embeddings beside its tokens: a list, or a tensor."""
    value = getattr(state, name, None)
    return value is not None and len(value) > 0


class V1Adapter(Adapter):
    """See the module."""

    def model(self) -> torch.nn.Module:
        model: torch.nn.Module = self.runner.get_model()
        return model

    def attach(self) -> None:
        self._rows: RowMap = make_rows([])
        self._last_rows: RowMap = make_rows([])
        self._keys: list[RowKey] = []
        self._discarded: np.ndarray[Any, np.dtype[np.bool_]] = np.zeros(0, dtype=bool)
        self._choice: torch.Tensor | None = None
        wrap_method(self.runner, "_prepare_inputs", self._prepare_inputs)
        wrap_method(self.runner, "execute_model", self._execute_model)
        if hasattr(self.runner, "sample_tokens"):
            wrap_method(self.runner, "sample_tokens", self._sample_tokens)
        wrap_method(self.runner, "_get_prompt_logprobs_dict", self._prompt_logprobs)
        wrap_method(self.runner.sampler, "sample", self._sample)
        wrap_method(self.runner.sampler, "forward", self._sampler)

    # -- steps ------------------------------------------------------------------------------------------

    def _prepare_inputs(self, original: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(scheduler_output, *args, **kwargs)
        if self.recorder.recording:
            self._settle(scheduler_output)
            self.begin_step(self._rows)
            self.set_logits_rows(self._last_rows, self._last_rows)
        return result

    def _settle(self, scheduler_output: Any) -> None:
        """Reads the batch: the flattened rows, and each request's last one."""
        batch = self.runner.input_batch
        rows: list[tuple[int, int, int]] = []
        last, keys, discarded = [], [], []
        for index, engine_id in enumerate(batch.req_ids):
            state = self.runner.requests[engine_id]
            beside = [name for name in ("mm_features", "prompt_embeds") if has_beside(state, name)]
            request, sequence = self.number(
                engine_id, state.prompt_token_ids or (), state.sampling_params, state.lora_request, beside
            )
            start = int(batch.num_computed_tokens_cpu[index])
            end = start + scheduler_output.num_scheduled_tokens[engine_id]
            rows.extend((request, sequence, position) for position in range(start, end))
            last.append((request, sequence, end - 1))
            keys.append(RowKey(request, sequence, end))
            # A token sampled after a chunk of a prompt (or of a preempted sequence) is discarded.
            discarded.append(end < state.num_tokens)
        self._rows, self._last_rows, self._keys = make_rows(rows), make_rows(last), keys
        self._discarded = np.array(discarded, dtype=bool)

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

    def _prompt_logprobs(self, original: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Prompt logprobs use slices of the step's hidden states."""
        if not self.recorder.recording:
            return original(hidden, *args, **kwargs)
        model = self.runner.model
        model.compute_logits = self.slices_of(hidden, self._rows, model.compute_logits)
        try:
            return original(hidden, *args, **kwargs)
        finally:
            del model.compute_logits

    def _sample(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        sampled, logprobs = original(*args, **kwargs)
        if self.recorder.recording and len(sampled) == len(self._keys):
            keys = [RowKey(-1, 0, 0) if d else k for k, d in zip(self._keys, self._discarded, strict=True)]
            with unseen():
                self._choice = sampled.to(torch.int64).view(-1).clone()
                sampled = self.force(keys, sampled)
        return sampled, logprobs

    def _sampler(self, original: Any, logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.recorder.recording:
            return original(logits, *args, **kwargs)
        self.recorder.set_rows(self._sampler_slot, self._last_rows, self._last_rows)
        given = self.recorder.feed(logits, self._sampler_slot, 0)
        with self.recorder.watch_kernels(self._sampler_slot):
            output = original(logits if given is None else given, *args, **kwargs)
        if self._choice is not None:
            self._report(output, self._choice)
            self._choice = None
        return output

    def _report(self, output: Any, choice: torch.Tensor) -> None:
        tensors = output.logprobs_tensors
        tokens = output.sampled_token_ids.view(-1).to(torch.int64)
        logprobs = None if tensors is None else tensors.logprobs[:, 0].to(torch.float32)
        self.report_kept(self._last_rows, self._keys, self._discarded, tokens, choice, logprobs)
