"""vLLM's V1 engine: rows from the input batch, tokens at ``Sampler.sample``.

Works for ``GPUModelRunner`` and the CPU runner that inherits from it (0.8.5 to 0.32). A step begins after
``_prepare_inputs``, when the batch is final, and ends with ``sample_tokens`` (or with ``execute_model``, in
versions that sample there). Under speculative decoding tokens are chosen in ``RejectionSampler`` (`speculation`).
"""

from __future__ import annotations

from typing import Any

import torch

from tracereplay.engines.vllm.guest.adapter import wrap_method
from tracereplay.engines.vllm.guest.numbering import NOBODY
from tracereplay.engines.vllm.guest.refusals import refuse_configuration, refuse_speculation
from tracereplay.engines.vllm.guest.sampled_steps import SampledSteps, given_beside
from tracereplay.engines.vllm.guest.speculation import Batch, Verification, ends_of, remarks
from tracereplay.hooks.kernels import unseen

__all__ = ["V1Adapter", "refuse_v1"]


def refuse_v1(runner: Any, config: Any) -> None:
    """Raises Unsupported, with a remedy, if this V1 engine runs in a way that cannot be recorded."""
    refuse_configuration(config)
    refuse_speculation(config)


class V1Adapter(SampledSteps):
    """See the module."""

    def attach(self) -> None:
        super().attach()
        wrap_method(self.runner, "_prepare_inputs", self._prepare_inputs)
        wrap_method(self.runner, "_get_prompt_logprobs_dict", self._prompt_logprobs)
        wrap_method(self.runner.sampler, "forward", self._sampler)
        self._verification: Verification | None = None  # of this step, under speculative decoding
        self._verifying = False  # whether the rejection sampler runs, which calls the sampler
        rejection = getattr(self.runner, "rejection_sampler", None)
        self._speculates = rejection is not None
        self.recorder.remarks = (*self.recorder.remarks, *remarks(self.config))
        if rejection is not None:
            wrap_method(rejection, "forward", self._verify)
            wrap_method(rejection, "apply_logits_processors", self._verified_logits)
            wrap_method(rejection, "_get_logprobs_tensors", self._verified_logprobs)
            wrap_method(self.runner, "propose_draft_token_ids", self._propose)

    # -- steps ------------------------------------------------------------------------------------------

    def _prepare_inputs(self, original: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(scheduler_output, *args, **kwargs)
        new = {request.req_id for request in scheduler_output.scheduled_new_reqs}
        self.attend([i for i in self.runner.requests if i not in new])
        if self.recorder.recording:
            self._settle(scheduler_output)
            self.begin()
        return result

    def reason(self, engine_id: str) -> tuple[str, int]:
        state = self.runner.requests.get(engine_id)
        if state is None or state.sampling_params is None:
            return "", 0
        tokens, asked = state.output_token_ids, state.sampling_params
        if len(tokens) >= (asked.max_tokens or 1 << 62) or state.num_tokens >= self.runner.max_model_len:
            return "length", len(tokens)
        stops = asked.stop_token_ids or () if asked.ignore_eos else asked.all_stop_token_ids
        if tokens and tokens[-1] in stops:
            return "stop", len(tokens)
        return ("" if asked.stop else "abort"), len(tokens)

    def _settle(self, scheduler_output: Any) -> None:
        """Reads the batch: the flattened rows, and each request's last one."""
        self._verification = None
        batch = self.runner.input_batch
        keys = [self.numbering.find(engine_id) or self._begun_by(engine_id) for engine_id in batch.req_ids]
        found = Batch(others=keys.count(NOBODY))
        if found.others and found.others == len(keys):
            self.settle(found)
            return
        drafts = scheduler_output.scheduled_spec_decode_tokens
        for index, (engine_id, (request, sequence)) in enumerate(zip(batch.req_ids, keys, strict=True)):
            state = self.runner.requests[engine_id]
            start = int(batch.num_computed_tokens_cpu[index])
            end = start + scheduler_output.num_scheduled_tokens[engine_id]
            # A token sampled after a chunk of a prompt (or of a preempted sequence) is discarded.
            drafted = drafts.get(engine_id, ())
            found.add(
                request, sequence, range(start, end), drafted, discarded=end < state.num_tokens,
                ends=ends_of(state, end - len(drafted), self.runner.max_model_len) if self._speculates else None,
            )  # fmt: skip
        self.settle(found)
        if self._speculates:  # in steps without drafts too: the rejection sampler is then called all the same
            self._verification = Verification(found, self.forced)
            self._rows, self._last_rows = self._verification.rows, self._verification.last_rows

    def _begun_by(self, engine_id: str) -> tuple[int, int]:
        state = self.runner.requests[engine_id]
        beside = given_beside(state)
        return self.number(
            engine_id, state.prompt_token_ids or (), state.sampling_params, state.lora_request, beside
        )

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
        if not self._verifying:
            return super()._sample(original, *args, **kwargs)
        sampled, logprobs = original(*args, **kwargs)
        if self._verification is not None:
            self._verification.bonus = sampled
        return sampled, logprobs

    def _sampler(self, original: Any, logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._verifying:
            return original(logits, *args, **kwargs)
        return super()._sampler(original, logits, *args, **kwargs)

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
