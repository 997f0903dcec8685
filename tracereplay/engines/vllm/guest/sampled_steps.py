"""What the two model runners of the V1 engine have in common: how a step ends, and how its tokens are sampled.

begin ─▶ model ─▶ compute_logits ─▶ sampler(sample) ─▶ prompt logprobs ─▶ end
                                     │ feed  │ force
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from tracereplay.engines.vllm.guest.adapter import Adapter, wrap_method
from tracereplay.engines.vllm.guest.speculation import Batch
from tracereplay.event import RowKey, RowMap, make_rows
from tracereplay.hooks.kernels import unseen

__all__ = ["SampledSteps", "given_beside"]

_NOBODY = RowKey(-1, 0, 0)  # of a token that the engine throws away
# What a request may be given beside tokens, and what it is called in a note: no workload can hold it.
_BESIDE = {"mm_features": "images or other media", "prompt_embeds": "prompt_embeds"}


def given_beside(request: Any) -> list[str]:
    """What a request was given beside its tokens, in words: images, sound or embeddings, in lists or a tensor."""
    values = {words: getattr(request, name, None) for name, words in _BESIDE.items()}
    return [words for words, value in values.items() if value is not None and len(value) > 0]


class SampledSteps(Adapter):
    """See the module. A runner's own adapter says when a step begins, and of what."""

    def model(self) -> torch.nn.Module:
        model: torch.nn.Module = self.runner.get_model()
        return model

    def attach(self) -> None:
        self.settle(Batch())
        self._choice: torch.Tensor | None = None
        wrap_method(self.runner, "execute_model", self._execute_model)
        if hasattr(self.runner, "sample_tokens"):
            wrap_method(self.runner, "sample_tokens", self._sample_tokens)
        wrap_method(self.runner.sampler, "sample", self._sample)

    # -- steps ------------------------------------------------------------------------------------------

    def settle(self, batch: Batch) -> None:
        """Keeps what the next step computes."""
        self._rows: RowMap = make_rows(batch.rows)
        self._last_rows: RowMap = make_rows(batch.sampled)
        self._keys: list[RowKey] = batch.keys
        self._others = batch.others
        self._discarded: np.ndarray[Any, np.dtype[np.bool_]] = np.array(batch.discarded, dtype=bool)

    def begin(self) -> None:
        """Begins the step that was settled."""
        self.begin_step(self._rows, self._others)
        self.set_logits_rows(self._last_rows, self._last_rows)
        self.recorder.set_rows(self._sampler_slot, self._last_rows, self._last_rows)

    def _execute_model(self, original: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if scheduler_output.finished_req_ids:
            self.finished(scheduler_output.finished_req_ids, self.reason)
        with self._watched():
            result = original(scheduler_output, *args, **kwargs)
        if result is not None:  # None: sample_tokens continues the step
            self.recorder.end_step()
        return result

    def _sample_tokens(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        with self._watched():
            result = original(*args, **kwargs)
        self.recorder.end_step()
        return result

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.recorder.broke(error)
            raise

    def reason(self, engine_id: str) -> tuple[str, int]:
        """Why a request ended, as far as a worker can know, and how many tokens it has generated.

        The scheduler, in another process, tells workers only that it did. What ended neither at its length nor
        with a token that stops was given up, or ended with a text that stops it, which is found in the front end.
        """
        return "", 0

    # -- logits and tokens ------------------------------------------------------------------------------

    def slices_of(
        self, hidden: torch.Tensor, rows: RowMap, compute: Callable[..., torch.Tensor]
    ) -> Callable[..., torch.Tensor]:
        """``compute_logits`` for calls with slices of ``hidden`` instead of the whole: an offset gives the rows.

        Args:
            hidden: the step's hidden states, shape ``[rows, hidden]``.
            rows: of the step.
            compute: the model's ``compute_logits``.
        """

        def with_rows(part: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
            width = hidden.stride(0) * hidden.element_size()
            start = (part.data_ptr() - hidden.data_ptr()) // width
            found = rows[start : start + len(part)]
            self.set_logits_rows(found, found)
            return compute(part, *rest, **options)

        return with_rows

    def _sample(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        sampled, beside = original(*args, **kwargs)
        if self.recorder.recording and len(sampled) == len(self._keys):
            keys = [_NOBODY if d else k for k, d in zip(self._keys, self._discarded, strict=True)]
            with unseen():
                self._choice = sampled.to(torch.int64).view(-1).clone()
                sampled = self.force(keys, sampled)
        return sampled, beside

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

    def _report(self, output: Any, choices: torch.Tensor) -> None:
        """Reports a sampler's output, without the tokens that are thrown away."""
        tensors = output.logprobs_tensors
        tokens = output.sampled_token_ids.view(-1).to(torch.int64)
        logprobs = None if tensors is None else tensors.logprobs[:, 0].to(torch.float32)
        rows, keys = self._last_rows, self._keys
        if self._discarded.any():
            kept = np.flatnonzero(~self._discarded)
            at = self.recorder.device.upload(torch.from_numpy(kept.copy()))  # which may be gone then
            tokens, choices = tokens[at], choices[at]
            logprobs = None if logprobs is None else logprobs[at]
            rows, keys = rows[kept], [keys[i] for i in kept]
        self.report_sampler(rows, keys, tokens, choices, logprobs)
