"""What steps had that were dropped because the writer was behind, and that the trace must have all the same: the
next recorded step has it, or one without rows: at the end, or where the engine idles and the writer has caught up.

Requests that began in them, and tokens. They are few bytes, and with them a replay can still force every token of
a request; only rows are lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from tracereplay.event import Request, RowKey, make_rows
from tracereplay.recorder.arena import Arena
from tracereplay.recorder.handover import Handover
from tracereplay.recorder.live import Moved
from tracereplay.recorder.protocol import StepMessage
from tracereplay.recorder.step import PendingStep
from tracereplay.recorder.writer_client import WriterClient
from tracereplay.trace import records

__all__ = ["Last", "Owed"]

MOST = 4096  # steps, and requests; a writer that hangs must not fill the engine's memory
MOST_PROMPTS = 1 << 22  # tokens of these requests
MOST_AT_ONCE = 1 << 15  # the same, of a message to a writer that may hang: a pipe must have room for it
AT_LAST = (
    "The steps before were left out because the writer was behind. This one has no rows and no calls, and holds "
    "the requests and tokens of theirs."
)


class _Tokens(NamedTuple):
    """Of one step; see `session.Session.sampled`."""

    keys: list[RowKey]
    tokens: torch.Tensor
    choices: torch.Tensor
    logprobs: torch.Tensor | None


class Last(NamedTuple):
    """A step without rows and calls.

    Args:
        number, weight_updates, notes, lacking, dropped: see `protocol.StepMessage`.
    """

    number: int
    weight_updates: int
    notes: Sequence[str]
    lacking: Sequence[int]
    dropped: int


class Owed:
    """Of one recording."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._tokens: list[_Tokens] = []
        self._paid: list[_Tokens] = []  # to the step that is under way, which may be given up

    def __bool__(self) -> bool:
        return bool(self.requests or self._tokens)

    def begun(self, requests: Iterable[Request]) -> None:
        """Keeps requests that began."""
        self.requests = _some([*self.requests, *requests], MOST_PROMPTS)

    def keep(
        self, keys: list[RowKey], tokens: torch.Tensor, choices: torch.Tensor, logprobs: torch.Tensor | None
    ) -> None:
        """Keeps what `session.Session.sampled` was given; the engine may write over its tensors."""
        if len(self._tokens) < MOST:
            copied = None if logprobs is None else logprobs.clone()
            self._tokens.append(_Tokens(keys, tokens.clone(), choices.clone(), copied))

    def pay(self, step: PendingStep) -> None:
        """Adds all of it to a step."""
        step.requests += self.requests
        self.requests = []
        self._paid, self._tokens = self._tokens, []
        for one in self._paid:
            step.add_sampled(*one)

    def pay_at_last(self, last: Last, writer: WriterClient, handover: Handover, patience: float) -> None:
        """Pays by a step of its own, since no other comes.

        Args:
            last: of the step.
            writer, handover: of the segment.
            patience: seconds that the writer has to free an arena; after these, tokens stay owed.
        """
        handover.drain(wait=True)
        arena = handover.take(wait=True, patience=patience)
        if arena is not None:
            self.pay_into(arena, last, writer, handover)
            return
        notes = [AT_LAST, *last.notes]
        requests = [[*records.write_request(r), r.id] for r in _some(self.requests, MOST_AT_ONCE)]
        self.requests = []
        rows = records.write_rows(make_rows([]))
        message = StepMessage(
            last.number, [rows], [], [], notes, requests, last.weight_updates, dropped=last.dropped,
            lacking=last.lacking,
        )  # fmt: skip
        handover.between_steps(lambda: writer.step(message))

    def pay_into(self, arena: Arena, last: Last, writer: WriterClient, handover: Handover) -> None:
        """Pays by a step of its own in ``arena``, which is an empty one of the writer's."""
        step = PendingStep(last.number, make_rows([]), arena, writer, last.weight_updates, handover)
        step.bare, step.notes = True, [AT_LAST, *last.notes]
        step.lacking, step.dropped = list(last.lacking), last.dropped
        self.pay(step)
        handover.add(step)

    def take_back(self, step: PendingStep) -> None:
        """The step is given up: it is owed again, and what began in the step."""
        self.requests = _some([*step.requests, *self.requests], MOST_PROMPTS)
        self._tokens, self._paid = [*self._paid, *self._tokens][:MOST], []

    def move(self, moved: Moved) -> None:
        """Gives it the requests' numbers in the next trace; what is of requests that ended is lost."""
        places = {(before, part): (request, sequence) for before, part, request, sequence in moved}
        moving = [(one, places.get((one.request, one.sequence))) for one in self.requests]
        self.requests = [replace(one, request=to[0], sequence=to[1]) for one, to in moving if to is not None]
        kept, self._tokens, self._paid = self._tokens, [], []
        for keys, tokens, choices, logprobs in kept:
            at = [i for i, key in enumerate(keys) if (key.request, key.sequence) in places]
            moved_keys = [RowKey(*places[keys[i].request, keys[i].sequence], keys[i].position) for i in at]
            if at:
                self._tokens.append(
                    _Tokens(moved_keys, tokens[at], choices[at], None if logprobs is None else logprobs[at])
                )


def _some(requests: Sequence[Request], tokens: int) -> list[Request]:
    """The first of them, with so many tokens of prompts at most."""
    found = []
    for request in requests[:MOST]:
        tokens -= len(request.prompt_token_ids)
        if tokens < 0:
            break
        found.append(request)
    return found
