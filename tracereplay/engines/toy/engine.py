"""The toy engine: its schedule, its model and its sampler, step by step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tracereplay.engines.toy.family import VERSION
from tracereplay.engines.toy.flaws import Flaw, Planted
from tracereplay.engines.toy.golden import Forced
from tracereplay.engines.toy.model import Model
from tracereplay.engines.toy.names import Naming, names_of
from tracereplay.engines.toy.numerics import Array, Numerics, Rounding
from tracereplay.engines.toy.recorder import Recorder
from tracereplay.engines.toy.sampler import Sampler
from tracereplay.engines.toy.schedule import Batch, Sample, samples, schedule
from tracereplay.engines.toy.sites import sites
from tracereplay.engines.toy.weights import VOCABULARY, Update, Weights, drawn
from tracereplay.errors import WorkloadError
from tracereplay.event import Sampled, Site, make_rows
from tracereplay.workload import Prompt, Workload

__all__ = ["Engine"]


class Engine:
    """A started engine; the other arguments are those of `runs.record` and `runs.replay`.

    Args:
        max_seqs: samples per step; None: no limit.
        tensors: of a checkpoint; by default derived from the name of the workload's model.
    """

    def __init__(
        self,
        work: Workload,
        rounding: Rounding,
        max_rows: int | None,
        ranks: int,
        flaw: Flaw | Sequence[Flaw] | None,
        noise: float = 0.0,
        update: Update | None = None,
        naming: Naming = "fused",
        *,
        max_seqs: int | None = None,
        tensors: Mapping[str, Array] | None = None,
    ) -> None:
        self._max_seqs = max_seqs
        self.work, self.max_rows, self.ranks, self.update = work, max_rows, ranks, update
        self.numerics = Numerics(str(work.settings.get("dtype", "bfloat16")), rounding)
        self.weights = Weights(tensors or drawn(work.model), self.numerics.nearest)
        flaws = [flaw] if isinstance(flaw, Flaw) else flaw or ()
        planted = Planted(flaws, self.numerics, work.prompts)
        self._names = names_of(naming)
        self._model = Model(self.weights, self.numerics, planted, ranks, noise, self._names)
        self._sampler = Sampler(planted, work.settings.get("logprobs_mode") == "processed_logprobs")
        for prompt in work.prompts:
            _check(prompt)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Its operators."""
        return tuple(sites(self.ranks, self.numerics.dtype, self._names))

    def describe(self) -> dict[str, Any]:
        version = {"once": VERSION, "twice": "1.0", "truncate": "1.5"}[self.numerics.rounding]
        settings = {
            "dtype": self.numerics.dtype, "tensor_parallel_size": self.ranks,
            "max_num_batched_tokens": self.max_rows, "logprobs_mode": "raw_logprobs", **self.work.settings,
        }  # fmt: skip
        return {
            "name": f"toy-{version}", "versions": {"toy": version}, "settings": settings, "device": "cpu",
            "environment": {},
        }  # fmt: skip

    def generate(
        self, recorder: Recorder, forced: Forced | None, groups: Sequence[Sequence[int]] | None = None
    ) -> dict[str, Any]:
        """One pass; returns its results as the manifest holds them.

        Args:
            recorder: of its operators.
            forced: the tokens to continue with; None: its own.
            groups: see `engines.request.Serving`.
        """
        begin = time.perf_counter()
        self._model.attention.clear()
        self._model.weights = self.weights
        every = list(samples(self.work.prompts))
        number = 0
        for group in groups or [range(len(self.work.prompts))]:
            live = [seq for request in group for seq in every if seq.request == request]
            number = self._serve(recorder, live, forced, number)
        recorder.close()
        return {"requests": [seq.result() for seq in every], "seconds": time.perf_counter() - begin}

    def _serve(self, recorder: Recorder, live: list[Sample], forced: Forced | None, number: int) -> int:
        """Generates for requests that come together, from step ``number`` on; returns that of the next step."""
        while any(seq.waiting for seq in live):
            if self.update is not None and number == self.update.step:
                self._renew(recorder, live, cleared=self.update.cleared)
            running = [seq for seq in live if seq.waiting and not self._shares(seq, live)]
            batch = schedule(running[: self._max_seqs], self.max_rows)
            self._step(recorder, batch, live, forced, number)
            number += 1
        return number

    def _renew(self, recorder: Recorder, live: Sequence[Sample], *, cleared: bool) -> None:
        """Replaces the weights, and recomputes running samples if the cache is cleared."""
        self._model.weights = self.weights.updated()
        recorder.weights_updated()
        if cleared:
            self._model.attention.clear()
            for seq in live:
                seq.done = 0

    def _shares(self, seq: Sample, live: Sequence[Sample]) -> bool:
        """Whether ``seq`` waits for the prompt that its request's first sample computes."""
        return self.numerics.rounding == "twice" and seq.sequence > 0 and not seq.done and any(
            s.request == seq.request and s.sequence == 0 for s in live
        )  # fmt: skip

    def _step(
        self, recorder: Recorder, batch: Batch, live: list[Sample], forced: Forced | None, number: int
    ) -> None:
        recorder.begin(batch.rows)
        hidden = self._model.decode(recorder, batch)
        last = self._forks(batch, live)
        recorder.commit(number, self._sample(recorder, hidden, batch, last, forced) if last else [])

    def _sample(
        self,
        recorder: Recorder,
        hidden: Array,
        batch: Batch,
        last: list[tuple[int, Sample]],
        forced: Forced | None,
    ) -> list[Sampled]:
        rows = make_rows([(*seq.key, seq.done - 1) for _, seq in last])
        logits = self._model.logits(recorder, hidden, [row for row, _ in last], rows)
        return self._sampler.sample(recorder, logits, rows, batch, last, forced)

    def _forks(self, batch: Batch, live: list[Sample]) -> list[tuple[int, Sample]]:
        """The rows to sample from; the first sample's last prompt row serves the samples that share it."""
        last = list(batch.last)
        for row, seq in batch.last:
            for other in live:
                if other.request == seq.request and seq.done == seq.prompt and self._shares(other, live):
                    self._model.attention.share(seq.key, other.key)
                    other.done = seq.done
                    last.append((row, other))
        return last


def _check(prompt: Prompt) -> None:
    ids = prompt.token_ids
    if not ids or max(ids) >= VOCABULARY:
        raise WorkloadError(f"The toy engine takes prompts of token ids below {VOCABULARY}; this one has {ids}.")
