"""Base of the adapters: taps the model, determines each step's rows, forces and reports sampled tokens.

An adapter wraps methods of one runner *instance* and changes nothing else in the engine. It has a `Recorder` (the
session) and, for replays, the tokens to force.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from tracereplay.device import Device
from tracereplay.engines.vllm.guest.asked import barriers, taken_by_graphs
from tracereplay.engines.vllm.guest.numbering import Numbering, client_names
from tracereplay.engines.vllm.guest.operators import (
    batched,
    compiled_modules,
    parts_of_operators,
    tap_operators,
)  # fmt: skip
from tracereplay.engines.vllm.guest.parameters import tensor_names
from tracereplay.engines.vllm.guest.sampling import kept_sampling, mark_of
from tracereplay.event import Request, RowKey, RowMap, Site
from tracereplay.hooks.graphs import watch_compiler
from tracereplay.hooks.taps import slot_of
from tracereplay.recorder.choosing import TRIGGER_IT, Choice
from tracereplay.recorder.control import Renumber
from tracereplay.recorder.live import Moved
from tracereplay.recorder.rows_first import RowsFirst
from tracereplay.recorder.triggers import MARK, Ended
from tracereplay.trace.requests import bounded

__all__ = ["SAMPLER", "Adapter", "Recorder", "wrap_method"]

SAMPLER = "sampler"


class Recorder(Protocol):
    """Receives an engine's steps from an adapter (`recorder.session.Session`)."""

    sites: list[Site]
    rows_first: RowsFirst
    parts: frozenset[int]
    compiled: Sequence[torch.nn.Module]
    remarks: Sequence[str]
    untapped: Mapping[str, Container[int]]
    device: Device

    @property
    def recording(self) -> bool: ...
    @property
    def choice(self) -> Choice: ...
    def attend(self, renumber: Renumber) -> None: ...
    def finished(self, requests: Sequence[int]) -> None: ...
    def lacks(self, requests: Iterable[int]) -> None: ...
    def begin_step(self, rows: RowMap, others: int = 0) -> None: ...
    def end_step(self) -> None: ...
    def paused(self) -> AbstractContextManager[None]: ...
    def requested(self, requests: Sequence[Request]) -> bool: ...
    def sequences_ended(self, ends: Sequence[Ended]) -> None: ...
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
        self._live: Iterable[str] = ()  # the engine's ids of requests that had begun before this step
        self._late: set[str] = set()  # of these, those that began while the recording was paused
        self._sampler_slot = slot_of(SAMPLER)
        parallel = config.parallel_config.tensor_parallel_size
        heads = max(1, config.model_config.get_total_num_kv_heads())  # a state space has none
        model = self.model()
        names = tensor_names(model, Path(config.model_config.model))
        eager = bool(config.model_config.enforce_eager)
        recorder.compiled = [] if eager else compiled_modules(model)
        recorder.sites = tap_operators(model, parallel, max(1, parallel // heads), names, eager=eager)
        if recorder.compiled:
            taken = taken_by_graphs(recorder.sites)
            recorder.untapped = taken.left_out
            watch_compiler(taken)
            recorder.remarks = barriers(recorder.sites, recorder.untapped)
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
        """(request, sequence) of a request that is scheduled for the first time, and reports it if it is new.

        Whether it is chosen is decided here, and stays; if not, it is `numbering.NOBODY`.

        Args:
            engine_id: vLLM's name for it.
            prompt: its token ids.
            sampling: its ``SamplingParams``.
            lora: its ``LoRARequest``, or None.
            beside: names of what it was given beside tokens, which no workload can hold.
        """
        counted = self.numbering.counted
        if not counted and not self.recorder.choice.takes(client_names(engine_id), mark_of(sampling)):
            self._late.discard(engine_id)
            return self.numbering.pass_over(engine_id)
        key = self.numbering.number(engine_id)
        if not counted:
            if engine_id in self._late:
                self._late.discard(engine_id)
                self.recorder.lacks([key[0]])
            ids, kept = tuple(int(t) for t in prompt), kept_sampling(sampling, lora, beside)
            self._begun.append(Request(*key, ids, kept, bounded(engine_id)))
            if mark_of(sampling) == TRIGGER_IT:
                self.recorder.trigger(MARK, engine_id, "the request says so itself", key)
        return key

    def attend(self, live: Iterable[str]) -> None:
        """Lets the recorder obey its orders, before a step's rows are numbered.

        Args:
            live: the engine's ids of requests that have begun before this step and may go on.
        """
        before, self._live = self.recorder.recording, live
        self.recorder.attend(self._renumber)
        now = self.recorder.recording
        if before and not now:
            self.recorder.lacks([self.numbering.number(i)[0] for i in live if self.numbering.knows(i)])
        elif now and not before:
            self._late = set(live)

    def finished(self, engine_ids: Iterable[str], reason: Callable[[str], tuple[str, int]]) -> None:
        """Requests have ended, as the engine's scheduler says.

        Args:
            engine_ids: vLLM's names for them.
            reason: gives, for a name, why it ended (see `triggers.Ended`) and how many tokens it has generated.
        """
        if self.numbering.counted:
            return
        known = {one: self.numbering.number(one) for one in engine_ids if self.numbering.knows(one)}
        self.numbering.finished(engine_ids)
        if known:
            self.recorder.sequences_ended([Ended(*key, *reason(one)) for one, key in known.items()])
            for one in known:
                self.numbering.forget(one)
            going_on = self.numbering.under_way()
            self.recorder.finished([request for request, _ in known.values() if request not in going_on])

    def _renumber(self, keep: bool) -> Moved:
        """See `recorder.control.Renumber`; those that do not go on are new ones of unknown beginning.

        Requests that were not chosen have no number here either, and go on unrecorded.
        """
        before, self.numbering = self.numbering, self.numbering.anew()
        begun, self._begun = self._begun, []
        if not keep:
            self._late = set(self._live)
            return []
        known = [engine_id for engine_id in self._live if before.knows(engine_id)]
        places = {before.number(i): self.numbering.number(i) for i in known}
        for request in begun:  # in steps that were not recorded
            if place := places.get((request.request, request.sequence)):
                self._begun.append(replace(request, request=place[0], sequence=place[1]))
        return [(*old, *new) for old, new in places.items()]

    def begin_step(self, rows: RowMap, others: int = 0) -> None:
        """Begins a step; reports requests that begin in it, or began in a step that was not recorded.

        Args:
            rows: see `make_rows`; of requests that are not chosen, which are ``others``, the request is -1.
        """
        self.recorder.begin_step(rows, others)
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
