"""vLLM's V0 engine (0.8.5): rows from the scheduled groups, tokens at the sampler module's ``_sample``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tracereplay.engines.vllm.guest.adapter import Adapter, wrap_method
from tracereplay.engines.vllm.guest.numbering import NOBODY
from tracereplay.engines.vllm.guest.refusals import NO_GRAPHS_V0, refuse_configuration, refuse_speculation
from tracereplay.errors import Unsupported
from tracereplay.event import RowKey, RowMap, make_rows
from tracereplay.hooks.kernels import unseen

__all__ = ["V0Adapter", "refuse_v0"]


def refuse_v0(runner: Any, config: Any) -> None:
    """Raises Unsupported, with a remedy, if this V0 engine runs in a way that cannot be recorded."""
    refuse_configuration(config)
    refuse_speculation(config, runner="V0")
    if getattr(config.scheduler_config, "num_scheduler_steps", 1) > 1:
        raise Unsupported("Multi-step scheduling cannot be recorded; set num_scheduler_steps=1.")
    if runner.device.type == "cuda" and not config.model_config.enforce_eager:
        raise Unsupported(NO_GRAPHS_V0)


class V0Adapter(Adapter):
    """See the module."""

    def model(self) -> torch.nn.Module:
        model: torch.nn.Module = self.runner.model
        return model

    def attach(self) -> None:
        from vllm.model_executor.layers import sampler

        self._rows: RowMap = make_rows([])
        self._others = 0
        self._choices: list[int] = []
        self._attended = False  # whether the step that was prepared has been announced
        self._keys: list[RowKey] = []
        self._sample_rows: RowMap = make_rows([])
        wrap_method(self.runner, "prepare_model_input", self._prepare)
        wrap_method(self.runner, "execute_model", self._execute)
        wrap_method(self.runner.sampler, "forward", self._sampler)
        wrap_method(sampler, "_sample", self._sample)

    def _prepare(self, original: Any, groups: Any, *args: Any, **kwargs: Any) -> Any:
        model_input = original(groups, *args, **kwargs)
        finished = args[1] if len(args) > 1 else kwargs.get("finished_requests_ids")
        self.finished(finished or (), lambda engine_id: ("", 0))  # its front end knows why
        # What is scheduled no more has ended, or was preempted.
        self.attend([group.request_id for group in groups if not group.is_prompt])
        self._attended = True
        if self.recorder.recording:
            self._rows = self._rows_of(groups, model_input)
        return model_input

    def _rows_of(self, groups: Any, model_input: Any) -> RowMap:
        """Rows in the order of the model input: by group, then by sequence."""
        positions = model_input.input_positions
        positions = (positions if positions.dim() == 1 else positions[0]).tolist()
        lengths = list(model_input.query_lens)
        rows: list[tuple[int, int, int]] = []
        self._others = 0
        for group in groups:
            for data in group.seq_data.values():
                key = self.numbering.find(group.request_id) or self._begun_by(group, data)
                self._others += key == NOBODY
                start = len(rows)
                rows.extend((*key, p) for p in positions[start : start + lengths.pop(0)])
        return make_rows(rows)

    def _begun_by(self, group: Any, data: Any) -> tuple[int, int]:
        beside = ["multi_modal_data"] if group.multi_modal_data else []
        return self.number(
            group.request_id, data.prompt_token_ids, group.sampling_params, group.lora_request, beside
        )

    def _execute(self, original: Any, model_input: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._attended:  # a rank other than the driver, which prepares
            self.attend(())
        self._attended = False
        if not self.recorder.recording:
            return original(model_input, *args, **kwargs)
        # Ranks other than the driver receive only tensors; the reader uses the driver's rows for them.
        rows, self._rows = self._rows, make_rows([])
        self.begin_step(rows, self._others)
        metadata = model_input.sampling_metadata
        if len(rows) and metadata is not None:
            selected = rows[metadata.selected_token_indices.cpu().numpy()]
            self._settle(metadata, selected)
            self.set_logits_rows(rows, selected)
            self.recorder.set_rows(self._sampler_slot, selected, selected)
        try:
            return original(model_input, *args, **kwargs)
        except BaseException as error:
            self.recorder.broke(error)
            raise
        finally:
            self.recorder.end_step()

    def _settle(self, metadata: Any, selected: RowMap) -> None:
        """Determines which selected rows are sampled, in the order of the sequence groups."""
        indices = [i for group in metadata.seq_groups for i in group.sample_indices]
        self._sample_rows = selected[np.array(indices, dtype=np.int64)]
        self._keys = [RowKey(r, s, p + 1) for r, s, p in self._sample_rows.tolist()]

    def _sample(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        results, tensor = original(*args, **kwargs)
        if not self.recorder.recording or not isinstance(results, list):
            return results, tensor
        self._choices = [token for tokens, _ in results for token in tokens]
        with unseen():
            forced = iter(self.force(self._keys, torch.tensor(self._choices, dtype=torch.int64)).tolist())
        return [([next(forced) for _ in tokens], parents) for tokens, parents in results], tensor

    def _sampler(self, original: Any, logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.recorder.recording:
            return original(logits, *args, **kwargs)
        given = self.recorder.feed(logits, self._sampler_slot, 0)
        with self.recorder.watch_kernels(self._sampler_slot):
            output = original(logits if given is None else given, *args, **kwargs)
        samples = [sample for group in output.outputs for sample in group.samples]
        if len(samples) == len(self._keys) == len(self._choices):
            tokens = torch.tensor([s.output_token for s in samples], dtype=torch.int64)
            logprobs = torch.tensor([s.logprobs[s.output_token].logprob for s in samples], dtype=torch.float32)
            choices = torch.tensor(self._choices, dtype=torch.int64)
            self._report(tokens, choices, logprobs)
        return output

    def _report(self, tokens: torch.Tensor, choices: torch.Tensor, logprobs: torch.Tensor) -> None:
        """Reports the sampler's outputs, without the tokens of requests that are not recorded."""
        rows, keys = self._sample_rows, self._keys
        if self._others:
            kept = np.flatnonzero(rows[:, 0] >= 0)
            at = torch.from_numpy(kept)
            tokens, choices, logprobs = tokens[at], choices[at], logprobs[at]
            rows, keys = rows[kept], [keys[i] for i in kept]
        self.report_sampler(rows, keys, tokens, choices, logprobs)
