"""Speculative decoding under V1: what a verification step computes, keeps and throws away.

In a verification step the model runs on a sequence's last token and on k draft tokens after it. The rejection
sampler accepts drafts from the front and adds one token of its own, so that m <= k + 1 tokens come out. The rows
of the last known token and of the m - 1 accepted drafts are those of an ordinary generation. Those of the drafts
behind them are rejected: their positions are computed again in a later step. What comes after a sequence's last
token is thrown away too, and its rows count as rejected.

    position   p        p+1      p+2      p+3
    input      token    draft    draft    draft        k = 3
    output     draft    draft    other    -            m = 3: two accepted, one from the model
    row        kept     kept     kept     rejected     its position is recorded as -1 - (p + 3)

Forcing: where golden's tokens are known, drafts are accepted as long as they are golden's, and golden's next token
comes after them. `RejectionSampler.forward` picks its tokens in one call and takes their logprobs in the next
(``_get_logprobs_tensors``), which is where golden's are put in place of its own: the logprobs are of golden's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from tracereplay.event import RowKey, make_rows

__all__ = ["Batch", "Ends", "Verification", "ends_of", "forced_run", "remarks"]

_NONE = -1  # vLLM's PLACEHOLDER_TOKEN_ID: no token at this place


def forced_run(forced: Mapping[RowKey, int], keys: Sequence[RowKey], drafts: Sequence[int]) -> list[int] | None:
    """The golden tokens that come out of a verification; None if golden has none at the first place.

    Args:
        forced: golden's tokens.
        keys: places of the k + 1 tokens that may come out.
        drafts: the k draft tokens.
    """
    tokens: list[int] = []
    for i, key in enumerate(keys):
        token = forced.get(key)
        if token is None:
            break
        tokens.append(token)
        if i >= len(drafts) or drafts[i] != token:
            break
    return tokens or None


class Ends(NamedTuple):
    """Where a sequence ends: what a verification gives beyond is thrown away by the scheduler.

    Args:
        left: how many tokens it may still get.
        stops: tokens after which it ends.
    """

    left: int
    stops: frozenset[int]

    def kept(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens`` belong to the sequence."""
        within = tokens[: self.left]
        return next((i + 1 for i, token in enumerate(within) if token in self.stops), len(within))


def ends_of(state: Any, known: int, longest: int) -> Ends:
    """Where a request ends, as far as a worker knows (texts that stop it are the front end's to find).

    Args:
        state: vLLM's ``CachedRequestState``.
        known: how many tokens the sequence has.
        longest: the engine's longest sequence.
    """
    parameters = state.sampling_params
    most = getattr(parameters, "max_tokens", None)
    last = longest if most is None else min(longest, len(state.prompt_token_ids or ()) + most)
    stops = {*(getattr(parameters, "stop_token_ids", None) or ())}
    if not getattr(parameters, "ignore_eos", False):
        stops |= {getattr(parameters, "eos_token_id", None)}
    return Ends(max(1, last - known), frozenset(stops - {None}))


def remarks(config: Any) -> tuple[str, ...]:
    """What a recording must say of a draft model, if there is one.

    Args:
        config: the engine's ``VllmConfig``.
    """
    speculative = getattr(config, "speculative_config", None)
    if speculative is None or speculative.method != "draft_model":
        return ()
    kinds = ", ".join(getattr(speculative.draft_model_config.hf_config, "architectures", None) or ["unknown"])
    return (
        f"The draft model ({kinds}) is not recorded, and the census does not cover it: it only proposes tokens, "
        "and the recorded model computes each token that is kept.",
    )


@dataclass
class Batch:
    """The rows of one step, gathered request by request.

    Args:
        rows: of the model's forward.
        sampled: rows from which a token may be sampled: of each request the last known token's and its drafts'.
        keys: places of those tokens.
        starts: of each request the number of its first row in ``rows``, and in ``sampled``.
        drafts: of each request.
        discarded: of each request, whether its token is thrown away (it follows a chunk of a prompt).
        ends: of each request, where it ends; None where that does not matter.
        others: how many of the requests are not recorded. Their rows have the request -1, and their tokens count
            as thrown away; a batch of nothing else has no rows.
    """

    rows: list[tuple[int, int, int]] = field(default_factory=list)
    sampled: list[tuple[int, int, int]] = field(default_factory=list)
    keys: list[RowKey] = field(default_factory=list)
    starts: list[tuple[int, int]] = field(default_factory=list)
    drafts: list[list[int]] = field(default_factory=list)
    discarded: list[bool] = field(default_factory=list)
    ends: list[Ends | None] = field(default_factory=list)
    others: int = 0

    def add(
        self, request: int, sequence: int, positions: range, drafts: Sequence[int], *, discarded: bool,
        ends: Ends | None = None,
    ) -> None:  # fmt: skip
        """Adds a request, whose last rows are those of its ``drafts``."""
        kept = len(positions) - len(drafts)
        self.starts.append((len(self.rows) + kept - 1, len(self.sampled)))
        self.rows += [(request, sequence, position) for position in positions]
        last = positions[kept - 1 :]
        self.sampled += [(request, sequence, position) for position in last]
        self.keys += [RowKey(request, sequence, position + 1) for position in last]
        self.drafts.append(list(drafts))
        self.discarded.append(discarded or request < 0)
        self.ends.append(ends)


class Verification:
    """A step's batch with the rows that its verification rejects.

    Args:
        batch: the step's.
        forced: golden's tokens, by which is known beforehand what will be rejected.
    """

    def __init__(self, batch: Batch, forced: Mapping[RowKey, int]) -> None:
        self.rows, self.last_rows = make_rows(batch.rows), make_rows(batch.sampled)
        self.keys = batch.keys
        self.own: torch.Tensor | None = None  # the most probable token of each draft's place
        self.bonus: torch.Tensor | None = None  # the token after each request's drafts
        self.settled = False
        self._batch = batch
        self._forced: list[list[int] | None] = []
        self._counts: list[int] = []
        self._outputs: torch.Tensor | None = None
        for request, drafts in enumerate(batch.drafts):
            at = self._places(request)
            run = forced_run(forced, batch.keys[at.start : at.stop], drafts) if forced else None
            run = None if batch.discarded[request] else run
            self._forced.append(run)
            if run is not None:
                self._reject(request, len(run))

    def _places(self, request: int) -> range:
        start = self._batch.starts[request][1]
        return range(start, start + len(self._batch.drafts[request]) + 1)

    def _reject(self, request: int, tokens: int) -> None:
        """Marks the rows behind those from which ``tokens`` came."""
        start, sampled = self._batch.starts[request]
        count = len(self._batch.drafts[request]) + 1
        # In place: calls of this step have these arrays already, and are written when it ends.
        for rows, first in ((self.rows, start), (self.last_rows, sampled)):
            behind = rows[first + tokens : first + count, 2]
            behind[:] = np.where(behind < 0, behind, -1 - behind)

    def settle(self, outputs: torch.Tensor, vocabulary: int) -> None:
        """Puts golden's tokens in place of the rejection sampler's, in place, and marks what is rejected.

        Args:
            outputs: its tokens, ``int32 [requests, most drafts + 1]``, -1 where there is none.
            vocabulary: its size; tokens beyond it are none.
        """
        if self.settled:
            return
        self.settled = True
        self._outputs = outputs.clone()
        chosen = outputs.cpu().tolist()
        for request, tokens in enumerate(chosen):
            run, ends = self._forced[request], self._batch.ends[request]
            if run is not None:
                tokens[:] = run + [_NONE] * (len(tokens) - len(run))
            count = _valid(tokens, vocabulary)
            count = count if ends is None else ends.kept(tokens[:count])
            if not self._batch.discarded[request]:
                self._reject(request, count)
            self._counts.append(count)
        if any(run is not None for run in self._forced):
            outputs.copy_(torch.tensor(chosen, dtype=outputs.dtype))

    def kept(self) -> list[int]:
        """Numbers of the sampled rows from which a token came."""
        return [
            place
            for request, count in enumerate(self._counts)
            if not self._batch.discarded[request]
            for place in self._places(request)[:count]
        ]

    def result(
        self, outputs: torch.Tensor, logprobs: torch.Tensor | None, targets: torch.Tensor, bonus: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Tokens, the sampler's own choices, and logprobs, of the rows that are `kept`.

        The own choice at a place is the token that the rejection sampler put there. Where it had stopped before,
        as it does at the first draft that is not its own, it is the most probable token.

        Args:
            outputs: tokens of each request, after `settle`.
            logprobs: of those tokens, one per place of ``outputs``.
            targets, bonus: which of the sampled rows are of draft places, and of the tokens after them.
        """
        width, own = outputs.shape[1], self._outputs
        assert own is not None
        choices = torch.zeros(len(self.keys), dtype=torch.int64, device=outputs.device)
        if self.own is not None and len(targets):
            choices[targets.long()] = self.own.to(torch.int64)
        if self.bonus is not None:
            choices[bonus.long()] = self.bonus.to(torch.int64).view(-1)
        requests = range(len(self._counts))
        places = [request * width + i for request in requests for i in range(len(self._places(request)))]
        every = torch.tensor(places, device=outputs.device)
        theirs = own.reshape(-1)[every].to(torch.int64)
        choices = torch.where(theirs >= 0, theirs, choices)
        kept = torch.tensor(self.kept(), dtype=torch.int64, device=outputs.device)
        tokens = outputs.reshape(-1)[every[kept]].to(torch.int64)
        values = None if logprobs is None else logprobs.reshape(-1)[every[kept]].to(torch.float32)
        return tokens, choices[kept], values


def _valid(tokens: Sequence[int], vocabulary: int) -> int:
    """How many tokens there are before the first that is none."""
    return next((i for i, token in enumerate(tokens) if not 0 <= token < vocabulary), len(tokens))
