"""Base of the adapters: taps the model, determines each step's rows, forces and reports sampled tokens.

An adapter wraps methods of one runner *instance* and changes nothing else in the engine. It has a `Recorder` (the
session) and, for replays, the tokens to force.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from tracereplay.device import Device
from tracereplay.engines.vllm.guest.numbering import Numbering
from tracereplay.engines.vllm.guest.operators import (
    batched,
    compiled_modules,
    parts_of_operators,
    tap_operators,
)  # fmt: skip
from tracereplay.engines.vllm.guest.parameters import tensor_names
from tracereplay.engines.vllm.guest.sampling import kept_sampling
from tracereplay.event import Request, RowKey, RowMap, Site
from tracereplay.hooks.graphs import watch_compiler
from tracereplay.hooks.taps import slot_of
from tracereplay.recorder.rows_first import RowsFirst
from tracereplay.recorder.triggers import MARK, Ended

__all__ = ["SAMPLER", "Adapter", "Recorder", "wrap_method"]

SAMPLER = "sampler"
XARG = "tracereplay"  # in a request's extra arguments


class Recorder(Protocol):
    """Receives an engine's steps from an adapter (`recorder.session.Session`)."""

    sites: list[Site]
    rows_first: RowsFirst
    parts: frozenset[int]
    compiled: Sequence[torch.nn.Module]
    remarks: Sequence[str]
    device: Device

    @property
    def recording(self) -> bool: ...
    def begin_step(self, rows: RowMap) -> None: ...
    def end_step(self) -> None: ...
    def paused(self) -> AbstractContextManager[None]: ...
    def requested(self, requests: Sequence[Request]) -> bool: ...
    def ended(self, ends: Sequence[Ended]) -> None: ...
    def trigger(self, kind: str, request: str | None, detail: str, number: tuple[int, int] = (-1, -1)) -> None: ...
    def broke(self, error: BaseException) -> None: ...
    def set_rows(self, slot: int, rows_in: RowMap, rows_out: RowMap) -> None: ...
    def feed(self, x: torch.Tensor, slot: int, index: int) -> torch.Tensor | None: ...
    def observe(self, x: torch.Tensor, slot: int, index: int, *, replace: bool = True) -> None: ...
    def watch_kernels(self, slot: int) -> AbstractContextManager[Any]: ...
    def sampled(
        self, keys: list[RowKey], tokens: torch.Tensor, choices: torch.Tensor, logprobs: torch.Tensor | None
    ) -> None: ...


def wrap_method(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replaces ``owner.name`` by ``wrapper(original, *args, **kwargs)`` on this instance."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    setattr(owner, name, wrapped)


def marked(sampling: Any) -> str | None:
    """What a request says to tracereplay: ``"vllm_xargs": {"tracereplay": ...}``."""
    extra = getattr(sampling, "extra_args", None)
    found = extra.get(XARG) if isinstance(extra, Mapping) else None
    return found if isinstance(found, str) else None


class Adapter:
    """Base of the engine adapters.

    Args:
        runner: the engine's model runner, its model loaded and not yet traced.
        recorder: receives the steps.
        config: the engine's ``VllmConfig``.
    """

    def __init__(self, runner: Any, recorder: Recorder, config: Any) -> None:
        self.runner = runner
        self.recorder = recorder
        self.config = config
        self.numbering = Numbering(0)
        self.forced: Mapping[RowKey, int] = {}
        self._begun: list[Request] = []
        self._sampler_slot = slot_of(SAMPLER)
        parallel = config.parallel_config.tensor_parallel_size
        heads = max(1, config.model_config.get_total_num_kv_heads())  # a state space has none
        model = self.model()
        names = tensor_names(model, Path(config.model_config.model))
        eager = bool(config.model_config.enforce_eager)
        recorder.compiled = [] if eager else compiled_modules(model)
        if recorder.compiled:
            watch_compiler()
        recorder.sites = tap_operators(model, parallel, max(1, parallel // heads), names, eager=eager)
        recorder.rows_first = RowsFirst(batched(model, recorder.sites))
        recorder.parts = parts_of_operators(model, recorder.sites)
        recorder.sites.append(Site(SAMPLER, "Sampler", self._sampler_slot, ("logits",), role="sampler"))
        self._logits_slots = [s.slot for s in recorder.sites if s.role == "logits"]
        self.attach()

    def model(self) -> torch.nn.Module:
        """The model, without wrappers that capture graphs."""
        raise NotImplementedError

    def attach(self) -> None:
        """Wraps the runner's methods."""
        raise NotImplementedError

    def begin_pass(
        self, first_request: int | None, forced: Mapping[RowKey, int], order: Sequence[int] | None = None
    ) -> None:
        """Begins a pass, whose requests start at ``first_request``; ``forced`` tokens replace sampled ones.

        Args:
            first_request, order: see `Numbering`.
            forced: golden's token at each place.
        """
        self.numbering = Numbering(first_request, order)
        self.forced = forced

    def number(
        self, engine_id: str, prompt: Sequence[int], sampling: Any, lora: Any, beside: Sequence[str]
    ) -> tuple[int, int]:
        """(request, sequence) of a scheduled request; a new one is reported if no workload has it.

        Args:
            engine_id: vLLM's name for it.
            prompt: its token ids.
            sampling: its ``SamplingParams``.
            lora: its ``LoRARequest``, or None.
            beside: names of what it was given beside tokens, which no workload can hold.
        """
        known = self.numbering.counted or self.numbering.knows(engine_id)
        key = self.numbering.number(engine_id)
        if not known:
            self._begun.append(Request(*key, tuple(int(t) for t in prompt), kept_sampling(sampling, lora, beside)))
            if marked(sampling) == "trigger":
                self.recorder.trigger(MARK, engine_id, "the request says so itself", key)
        return key

    def finished(self, engine_ids: Iterable[str], reason: Callable[[str], tuple[str, int]]) -> None:
        """Requests have ended, as the engine's scheduler says.

        Args:
            engine_ids: vLLM's names for them.
            reason: gives, for a name, why it ended (see `triggers.Ended`) and how many tokens it has generated.
        """
        known = [engine_id for engine_id in engine_ids if self.numbering.knows(engine_id)]
        if not self.numbering.counted:
            self.recorder.ended([Ended(*self.numbering.number(one), *reason(one)) for one in known])
            for engine_id in known:
                self.numbering.forget(engine_id)

    def begin_step(self, rows: RowMap) -> None:
        """Begins a step; reports requests that begin in it, or began in a step that was not recorded."""
        self.recorder.begin_step(rows)
        if self._begun and self.recorder.requested(self._begun):
            self._begun = []

    def set_logits_rows(self, rows_in: RowMap, rows_out: RowMap) -> None:
        """Sets the rows of the logits processor's next call."""
        for slot in self._logits_slots:
            self.recorder.set_rows(slot, rows_in, rows_out)

    def force(self, keys: Sequence[RowKey], chosen: torch.Tensor) -> torch.Tensor:
        """The tokens to continue with: golden ones where known, else ``chosen`` (shape ``[len(keys)]``)."""
        if not self.forced or not self.recorder.recording:
            return chosen
        tokens = [self.forced.get(key, -1) for key in keys]
        wanted = torch.tensor(tokens, dtype=chosen.dtype)
        if chosen.device.type != "cpu":
            wanted = self.recorder.device.upload(wanted)
        return torch.where(wanted >= 0, wanted, chosen)

    def report_sampler(
        self, rows: RowMap, keys: list[RowKey], tokens: torch.Tensor, choices: torch.Tensor,
        logprobs: torch.Tensor | None,
    ) -> None:  # fmt: skip
        """Records the sampler's outputs.

        Args:
            rows: rows of the outputs.
            keys: places of the new tokens, one per row.
            tokens: those that the generation continues with, ``int64 [rows]``.
            choices: the sampler's own, ``int64 [rows]``.
            logprobs: reported log probabilities of ``tokens``, ``float32 [rows]``.
        """
        self.recorder.set_rows(self._sampler_slot, rows, rows)
        self.recorder.observe(choices, self._sampler_slot, 0, replace=False)
        if logprobs is not None:
            self.recorder.observe(logprobs, self._sampler_slot, 1, replace=False)
        self.recorder.sampled(keys, tokens, choices, logprobs)
