"""Finding a row again: in another engine's batches, or in another request with the same beginning.

Engines compose batches as they like, so a row is looked up by (request, sequence, position). Where that
very row was never computed (a prefix cache skipped it, or the prompt of a second sample was shared), a row
whose sequence has the same tokens up to that position is the same computation and stands in for it. A row of
a draft token that was rejected belongs to no sequence, and is never found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from tracereplay.event import RowKey, RowMap

__all__ = ["RowFinder", "Tokens", "prefix_digests"]

# (request, sequence) -> all token ids of that sequence, prompt first
Tokens = Mapping[tuple[int, int], Sequence[int]]


def prefix_digests(tokens: Sequence[int]) -> list[bytes]:
    """For each position, a digest of all tokens up to and including it."""
    state = xxhash.xxh3_128()
    digests = []
    for token in tokens:
        state.update(int(token).to_bytes(8, "little", signed=True))
        digests.append(state.digest())
    return digests


class RowFinder:
    """Numbers the distinct rows of a pass and finds them by key, or by equal prefix.

    Args:
        tokens: the sequences of the generation; positions outside them are found by key only.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._digests = {key: prefix_digests(ids) for key, ids in tokens.items()}
        self._numbers: dict[RowKey, int] = {}
        self._by_prefix: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, rows: RowMap) -> npt.NDArray[np.int64]:
        """Numbers of the rows, new ones for those not seen before, -1 for rejected ones; ``int64 [rows]``."""
        return np.array([self._add(RowKey(*row)) for row in rows.tolist()], dtype=np.int64)

    def find(self, rows: RowMap) -> npt.NDArray[np.int64]:
        """Numbers of the rows, -1 where none is known; ``int64`` of shape ``[rows]``."""
        return np.array([self._find(RowKey(*row)) for row in rows.tolist()], dtype=np.int64)

    def alike(self) -> npt.NDArray[np.int64]:
        """For each row number, the first number with the same prefix; ``int64`` of shape ``[len(self)]``."""
        first = [self._by_prefix.get(self._digest(key) or b"", number) for key, number in self._numbers.items()]
        return np.array(first, dtype=np.int64)

    def keys(self) -> Iterable[RowKey]:
        """All rows in order of their numbers."""
        return self._numbers.keys()

    def _add(self, key: RowKey) -> int:
        if key.position < 0:  # of a rejected draft
            return -1
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._numbers)
            digest = self._digest(key)
            if digest is not None:
                self._by_prefix.setdefault(digest, number)
        return number

    def _find(self, key: RowKey) -> int:
        number = self._numbers.get(key)
        if number is not None:
            return number
        digest = self._digest(key)
        return -1 if digest is None else self._by_prefix.get(digest, -1)

    def _digest(self, key: RowKey) -> bytes | None:
        digests = self._digests.get((key.request, key.sequence), ())
        return digests[key.position] if 0 <= key.position < len(digests) else None
