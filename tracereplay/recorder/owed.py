"""Tokens of steps that were dropped because the writer was behind: the next recorded step has them.

They are few bytes, and with them a replay can still force every token of a request; only rows are lost.
"""

from __future__ import annotations

import torch

from tracereplay.event import RowKey
from tracereplay.recorder.live import Moved
from tracereplay.recorder.step import PendingStep

__all__ = ["Owed"]

MOST = 4096  # steps; a writer that hangs must not fill the engine's memory


class Owed:
    """Of one recording."""

    def __init__(self) -> None:
        self._kept: list[tuple[list[RowKey], torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    def keep(
        self, keys: list[RowKey], tokens: torch.Tensor, choices: torch.Tensor, logprobs: torch.Tensor | None
    ) -> None:
        """Keeps what `session.Session.sampled` was given; the engine may write over its tensors."""
        if len(self._kept) < MOST:
            copied = None if logprobs is None else logprobs.clone()
            self._kept.append((keys, tokens.clone(), choices.clone(), copied))

    def pay(self, step: PendingStep) -> None:
        """Adds them to a step."""
        kept, self._kept = self._kept, []
        for one in kept:
            step.add_sampled(*one)

    def move(self, moved: Moved) -> None:
        """Gives them their requests' numbers in the next trace; those of requests that ended are lost."""
        places = {(before, part): (request, sequence) for before, part, request, sequence in moved}
        kept, self._kept = self._kept, []
        for keys, tokens, choices, logprobs in kept:
            at = [i for i, key in enumerate(keys) if (key.request, key.sequence) in places]
            moved_keys = [RowKey(*places[keys[i].request, keys[i].sequence], keys[i].position) for i in at]
            if at:
                self._kept.append(
                    (moved_keys, tokens[at], choices[at], None if logprobs is None else logprobs[at])
                )
