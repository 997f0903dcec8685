"""vLLM's V1 engine: rows from the input batch, tokens at ``Sampler.sample``.

Works for ``GPUModelRunner`` and the CPU runner that inherits from it (0.8.5 to 0.32). A step begins after
``_prepare_inputs``, when the batch is final, and ends with ``sample_tokens`` (or with ``execute_model``, in
versions that sample there). Under speculative decoding tokens are chosen in ``RejectionSampler`` (`speculation`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tracereplay.engines.vllm.guest.adapter import Adapter, wrap_method
from tracereplay.engines.vllm.guest.refusals import NO_GRAPHS, refuse_configuration, refuse_speculation
from tracereplay.engines.vllm.guest.speculation import Batch, Verification, ends_of, remarks
from tracereplay.errors import Unsupported
from tracereplay.event import RowKey, RowMap, make_rows
from tracereplay.hooks.kernels import unseen

__all__ = ["V1Adapter", "given_beside", "refuse_cuda_graphs", "refuse_v1"]


# What a request may be given beside tokens, and what it is called in a note: no workload can hold it.
_BESIDE = {"mm_features": "images or other media", "prompt_embeds": "prompt_embeds"}


def refuse_v1(runner: Any, config: Any) -> None:
    """Raises Unsupported, with a remedy, if this V1 engine runs in a way that cannot be recorded."""
    refuse_configuration(config)
    refuse_speculation(config)
    refuse_cuda_graphs(runner, config)


def refuse_cuda_graphs(runner: Any, config: Any) -> None:
    """Raises Unsupported if the engine replays CUDA graphs."""
    compilation = config.compilation_config
    mode = getattr(compilation, "cudagraph_mode", None)
    graphs = bool(getattr(compilation, "use_cudagraph", False)) if mode is None else mode.name != "NONE"
    if runner.device.type == "cuda" and graphs and not config.model_config.enforce_eager:
        raise Unsupported(NO_GRAPHS)


def given_beside(request: Any) -> list[str]:
    """What a request was given beside its tokens, in words: images, sound or embeddings, in lists or a tensor."""
    values = {words: getattr(request, name, None) for name, words in _BESIDE.items()}
    return [words for words, value in values.items() if value is not None and len(value) > 0]


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
        self._verification: Verification | None = None  # of this step, under speculative decoding
        self._verifying = False  # whether the rejection sampler runs, which calls the sampler
        rejection = getattr(self.runner, "rejection_sampler", None)
        self._speculates = rejection is not None
        self.recorder.remarks = remarks(self.config)
        if rejection is not None:
            wrap_method(rejection, "forward", self._verify)
            wrap_method(rejection, "apply_logits_processors", self._verified_logits)
            wrap_method(rejection, "_get_logprobs_tensors", self._verified_logprobs)
            wrap_method(self.runner, "propose_draft_token_ids", self._propose)

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
        batch, found = self.runner.input_batch, Batch()
        drafts = scheduler_output.scheduled_spec_decode_tokens
        for index, engine_id in enumerate(batch.req_ids):
            state = self.runner.requests[engine_id]
            beside = given_beside(state)
            request, sequence = self.number(
                engine_id, state.prompt_token_ids or (), state.sampling_params, state.lora_request, beside
            )
            start = int(batch.num_computed_tokens_cpu[index])
            end = start + scheduler_output.num_scheduled_tokens[engine_id]
            # A token sampled after a chunk of a prompt (or of a preempted sequence) is discarded.
            drafted = drafts.get(engine_id, ())
            found.add(
                request, sequence, range(start, end), drafted, discarded=end < state.num_tokens,
                ends=ends_of(state, end - len(drafted), self.runner.max_model_len) if self._speculates else None,
            )  # fmt: skip
        self._verification = None
        self._rows, self._last_rows, self._keys = make_rows(found.rows), make_rows(found.sampled), found.keys
        if self._speculates:  # in steps without drafts too: the rejection sampler is then called all the same
            self._verification = Verification(found, self.forced)
            self._rows, self._last_rows = self._verification.rows, self._verification.last_rows
        self._discarded = np.array(found.discarded, dtype=bool)

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
        if self._verifying:
            if self._verification is not None:
                self._verification.bonus = sampled
        elif self.recorder.recording and len(sampled) == len(self._keys):
            keys = [RowKey(-1, 0, 0) if d else k for k, d in zip(self._keys, self._discarded, strict=True)]
            with unseen():
                self._choice = sampled.to(torch.int64).view(-1).clone()
                sampled = self.force(keys, sampled)
        return sampled, logprobs

    def _sampler(self, original: Any, logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.recorder.recording or self._verifying:
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

    # -- verification of drafts -------------------------------------------------------------------------

    def _verify(
        self, original: Any, metadata: Any, draft_probs: Any, logits: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """The rejection sampler, recorded as the sampler: it takes the logits and gives tokens and logprobs."""
        found = self._verification
        if found is None or not self.recorder.recording:
            return original(metadata, draft_probs, logits, *args, **kwargs)
        self.recorder.set_rows(self._sampler_slot, found.last_rows, found.last_rows)
        given = self.recorder.feed(logits, self._sampler_slot, 0)
        self._verifying = True
        try:
            with self.recorder.watch_kernels(self._sampler_slot):
                output = original(metadata, draft_probs, logits if given is None else given, *args, **kwargs)
        finally:
            self._verifying = False
        with unseen():
            found.settle(output.sampled_token_ids, self.runner.input_batch.vocab_size)
            tensors = output.logprobs_tensors
            logprobs = None if tensors is None else tensors.logprobs[:, 0]
            targets, bonus = metadata.target_logits_indices, metadata.bonus_logits_indices
            tokens, choices, logprobs = found.result(output.sampled_token_ids, logprobs, targets, bonus)
        kept = found.kept()
        self.report_sampler(found.last_rows[kept], [found.keys[i] for i in kept], tokens, choices, logprobs)
        return output

    def _verified_logits(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        logits = original(*args, **kwargs)
        if self._verifying and self._verification is not None:
            with unseen():
                self._verification.own = logits.argmax(dim=-1)
        return logits

    def _verified_logprobs(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Logprobs are taken of the tokens that are given here, the last argument."""
        if self._verifying and self._verification is not None:
            tokens = kwargs["sampled_token_ids"] if "sampled_token_ids" in kwargs else args[-1]
            with unseen():
                self._verification.settle(tokens, self.runner.input_batch.vocab_size)
        return original(*args, **kwargs)

    def _propose(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """A draft model computes within the step, and shares modules with the model: vLLM caches rotary ones."""
        with self.recorder.paused():
            return original(*args, **kwargs)
