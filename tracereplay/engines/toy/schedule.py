"""Schedules samples: continuous batching, prompts in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracereplay.engines.toy.numerics import Array
from tracereplay.event import RowKey, RowMap, Sampled, make_rows
from tracereplay.workload import Prompt

__all__ = ["Batch", "Sample", "samples", "schedule"]


@dataclass
class Sample:
    """A sample in progress; ``done`` counts its computed rows."""

    request: int
    sequence: int
    tokens: list[int]
    prompt: int
    goal: int
    sampling: Mapping[str, Any]
    done: int = 0
    logprobs: list[float] = field(default_factory=list)

    @property
    def key(self) -> tuple[int, int]:
        return self.request, self.sequence

    @property
    def waiting(self) -> int:
        """Rows that can be computed now."""
        return len(self.tokens) - self.done if len(self.tokens) < self.goal else 0

    def advance(self, token: int, choice: int, logprob: float) -> Sampled:
        """Continues with ``token``."""
        key = RowKey(*self.key, len(self.tokens))
        self.tokens.append(token)
        self.logprobs.append(logprob)
        return Sampled(key, token, choice, logprob)

    def result(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {
            "request": self.request, "sequence": self.sequence, "token_ids": self.tokens[self.prompt :],
            "logprobs": self.logprobs, "prompt_logprobs": None, "finish_reason": "length", "num_cached_tokens": 0,
        }  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """The rows of one step, and which of them are sampled from."""

    rows: RowMap
    token_ids: Array
    last: tuple[tuple[int, Sample], ...]


def samples(prompts: Sequence[Prompt]) -> Iterator[Sample]:
    """All samples of all prompts."""
    for request, prompt in enumerate(prompts):
        ids = list(prompt.token_ids or ())
        goal = len(ids) + int(prompt.sampling.get("max_tokens", 16))
        for sequence in range(prompt.sequences):
            yield Sample(request, sequence, list(ids), len(ids), goal, prompt.sampling)


def schedule(live: Sequence[Sample], max_rows: int | None) -> Batch:
    """Decoding rows first, then prompts in order, as far as the step has room."""
    room = max_rows or 1 << 30
    taken: list[tuple[Sample, int]] = []
    for seq in sorted(live, key=lambda s: s.waiting != 1):
        count = min(seq.waiting, room)
        if count:
            taken.append((seq, count))
            room -= count
    keys, ids, last = [], [], []
    for seq, count in taken:
        for position in range(seq.done, seq.done + count):
            keys.append((*seq.key, position))
            ids.append(seq.tokens[position])
        if seq.done + count == len(seq.tokens):
            last.append((len(keys) - 1, seq))
        seq.done += count
    return Batch(make_rows(keys), np.array(ids, np.int64), tuple(last))
