"""Golden rows in the candidate's process: what an injected pass feeds, and which tokens are forced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from tracereplay.event import RowKey, RowMap
from tracereplay.passes import RECORD
from tracereplay.replayer.ahead import Ask
from tracereplay.replayer.tables import Ints, Known, RowTables, laid_out
from tracereplay.trace import Trace
from tracereplay.trace.rows import Tokens

__all__ = ["GoldenRows", "forced_tokens", "golden_tokens"]


def golden_tokens(trace: Trace, pass_name: str = RECORD) -> dict[tuple[int, int], list[int]]:
    """All token ids of each (request, sequence), prompt first, as far as they are known.

    They are those that the engine returned, since a recording may end before the generation. If nothing was
    returned (a user's command, an engine that died), they are those of the steps, up to the first missing one.
    """
    prompts = [list(prompt.token_ids or ()) for prompt in trace.run.prompts]
    results = trace.results.get(pass_name, {}).get("requests")
    if results is not None:
        return {(r["request"], r["sequence"]): prompts[r["request"]] + list(r["token_ids"]) for r in results}
    tokens: dict[tuple[int, int], list[int]] = {}
    for step in trace.records(pass_name):
        for found in step.sampled:
            request, sequence, position = found.key
            ids = tokens.setdefault((request, sequence), list(prompts[request]))
            if position <= len(ids):
                del ids[position:]  # of a row computed twice, the last one counts
                ids.append(found.token)
    return tokens


class GoldenRows:
    """The `Replacement` of an injected pass.

    Args:
        golden: the golden recording's rows. Under tensor parallelism, golden's shards are joined and cut into this
            rank's.
    """

    def __init__(self, golden: RowTables) -> None:
        self._golden = golden

    feeds = True

    def takes(self, slot: int) -> bool:
        """See `recorder.replacement.Replacement`."""
        return True

    def stands_for(self, slot: int, index: int, inputs: int | None) -> Sequence[int]:
        """See `recorder.replacement.Replacement`."""
        return (0, 1) if self._golden.is_sum(slot, inputs) else (index,)

    def rows_for(self, rows_of: Callable[[int], tuple[RowMap, RowMap]]) -> None:
        """See `recorder.replacement.Replacement`."""
        self._golden.rows_for(rows_of)

    def rows(
        self, slot: int, side: str, index: int, rows: RowMap, like: torch.Tensor, inputs: int | None = None
    ) -> torch.Tensor | None:
        found = self._known(slot, side, index, rows, like, inputs)
        if found is None:
            return None
        data, at, known = found
        picked = self._golden.picked(Ask(slot, side, index, inputs), data, at[known], like.dtype)
        if len(picked) == len(like):
            return laid_out(picked, like)
        return laid_out(like, like).index_copy_(0, self._golden.targets(known), picked)

    def lay_in(
        self, slot: int, side: str, index: int, rows: RowMap, hosts: Sequence[torch.Tensor], inputs: int | None
    ) -> Known | None:
        found = self._known(slot, side, index, rows, hosts[0], inputs)
        if found is None:
            return None
        data, at, known = found
        self._golden.lay_in(data, at, known, hosts[0])
        return known

    def _known(
        self, slot: int, side: str, index: int, rows: RowMap, like: torch.Tensor, inputs: int | None
    ) -> tuple[torch.Tensor, Ints, Known] | None:
        """`RowTables.find`, and which rows are known; None if no row is."""
        found = self._golden.find(slot, side, index, rows, like, inputs)
        known = None if found is None else found[1] >= 0
        return None if found is None or known is None or not known.any() else (*found, known)


def forced_tokens(tokens: Tokens, prompts: Sequence[int]) -> Mapping[RowKey, int]:
    """The golden token at every generated position.

    Args:
        tokens: see `golden_tokens`.
        prompts: length of each request's prompt.
    """
    return {
        RowKey(request, sequence, position): int(token)
        for (request, sequence), ids in tokens.items()
        for position, token in enumerate(ids)
        if position >= prompts[request]
    }
