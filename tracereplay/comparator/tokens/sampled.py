"""What was sampled at each place of a pass, in a few bytes a token."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tracereplay.event import RowKey, Sampled

__all__ = ["Places", "SampledTokens", "Sampling", "shared_places"]

Sampling: TypeAlias = Mapping[RowKey, Sampled]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class SampledTokens(Mapping[RowKey, Sampled]):
    """The sampled tokens of a pass by their places, in order of sampling; of a place, the last sampling stands.

    Args:
        sampled: to begin with.
    """

    def __init__(self, sampled: Iterable[Sampled] = ()) -> None:
        self._whole = array("q")  # request, sequence, position, token, choice
        self._logprobs = array("d")
        self._reported = array("b")  # whether there is a logprob: NaN is one
        self.add(sampled)

    def add(self, sampled: Iterable[Sampled]) -> None:
        """Adds tokens; not after the first one was looked up."""
        for one in sampled:
            self._whole.extend((*one.key, one.token, one.choice))
            self._logprobs.append(float("nan") if one.logprob is None else one.logprob)
            self._reported.append(one.logprob is not None)

    @cached_property
    def columns(self) -> tuple[Ints, Floats, npt.NDArray[np.bool_]]:
        """In order of sampling: request, sequence, position, token and choice ``int64 [tokens, 5]``; the logprobs,
        and whether there is one."""
        whole = np.array(self._whole, np.int64).reshape(-1, 5)
        logprobs, reported = np.array(self._logprobs, np.float64), np.array(self._reported, bool)
        # A place keeps its rank when it is sampled again, as a key of a dictionary does.
        _, first, which = np.unique(whole[:, :3], axis=0, return_index=True, return_inverse=True)
        if len(first) < len(whole):
            last = np.zeros(len(first), np.int64)
            last[which.reshape(-1)] = np.arange(len(whole))
            kept = last[np.argsort(first, kind="stable")]
            whole, logprobs, reported = whole[kept], logprobs[kept], reported[kept]
        del self._whole, self._logprobs, self._reported
        return whole, logprobs, reported

    @cached_property
    def _sorted(self) -> tuple[Ints, npt.NDArray[np.void]]:
        keys = _packed(self.columns[0][:, :3])
        order = np.argsort(keys, kind="stable")
        return order, keys[order]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __iter__(self) -> Iterator[RowKey]:
        for row in self.columns[0]:
            yield RowKey(*row[:3].tolist())

    def __getitem__(self, key: RowKey) -> Sampled:
        order, keys = self._sorted
        wanted = _packed(np.array([key], np.int64))[0]
        at = int(np.searchsorted(keys, wanted))
        if at == len(keys) or keys[at] != wanted:
            raise KeyError(key)
        row = int(order[at])
        whole, logprobs, reported = self.columns
        request, sequence, position, token, choice = whole[row].tolist()
        logprob = float(logprobs[row]) if reported[row] else None
        return Sampled(RowKey(request, sequence, position), token, choice, logprob)


class Places(NamedTuple):
    """Places that two passes have, in the first one's order of sampling; the arrays run in parallel.

    Args:
        keys: request, sequence, position; ``int64 [places, 3]``.
        tokens, choices: of each pass, ``int64 [places]``.
        logprobs: of each pass, ``float64 [places]``.
        reported: where both have a logprob, ``bool [places]``.
    """

    keys: Ints
    tokens: tuple[Ints, Ints]
    choices: tuple[Ints, Ints]
    logprobs: tuple[Floats, Floats]
    reported: npt.NDArray[np.bool_]

    def before(self, parted: Mapping[tuple[int, int], int], slack: int = 0) -> npt.NDArray[np.bool_]:
        """Those before the position at which a sequence's tokens part, plus ``slack``."""
        if not parted:
            return np.ones(len(self.keys), bool)
        limits = np.array([parted.get((r, s), 1 << 60) for r, s, _ in self.keys.tolist()], np.int64)
        found: npt.NDArray[np.bool_] = self.keys[:, 2] < limits + slack
        return found

    def where(self, mask: npt.NDArray[Any]) -> Places:
        """Some of them: a mask, or their numbers in another order."""
        return Places(
            self.keys[mask], (self.tokens[0][mask], self.tokens[1][mask]),
            (self.choices[0][mask], self.choices[1][mask]), (self.logprobs[0][mask], self.logprobs[1][mask]),
            self.reported[mask],
        )  # fmt: skip


def shared_places(golden: Sampling, candidate: Sampling) -> Places:
    """The places that both passes have."""
    sides = [_columns_of(side) for side in (golden, candidate)]
    keys = [_packed(side[0][:, :3]) for side in sides]
    _, mine, theirs = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    order = np.argsort(mine, kind="stable")
    (one, mine_logprobs, mine_has), (other, their_logprobs, they_have) = sides
    mine, theirs = mine[order], theirs[order]
    one, other = one[mine], other[theirs]
    return Places(
        one[:, :3], (one[:, 3], other[:, 3]), (one[:, 4], other[:, 4]),
        (mine_logprobs[mine], their_logprobs[theirs]), mine_has[mine] & they_have[theirs],
    )  # fmt: skip


def _columns_of(sampling: Sampling) -> tuple[Ints, Floats, npt.NDArray[np.bool_]]:
    found = sampling if isinstance(sampling, SampledTokens) else SampledTokens(sampling.values())
    return found.columns


def _packed(keys: Ints) -> npt.NDArray[Any]:
    """Keys as single items that sort and compare, ``[keys]``."""
    packed = np.empty(len(keys), [("request", np.int64), ("sequence", np.int64), ("position", np.int64)])
    for column, name in enumerate(packed.dtype.names or ()):
        packed[name] = keys[:, column]
    return packed
