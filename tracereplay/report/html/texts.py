"""Both sides' tokens side by side, the ones that differ marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from tracereplay.columns.tensors import edges
from tracereplay.comparator.details import Generated
from tracereplay.comparator.tokens.generation import first_differences

__all__ = ["Decode", "Piece", "SideBySide", "side_by_side"]

Decode = Callable[[Sequence[int]], str]

SEQUENCES, TOKENS, BEFORE, PROMPT = 8, 500, 120, 600


@dataclass(frozen=True)
class Piece:
    """Tokens in a row of the same kind.

    Args:
        text: as text, or as ids.
        kind: ``same``, ``first`` (the first that differs), ``differs``, or ``after`` (of another text).
    """

    text: str
    kind: str


@dataclass(frozen=True)
class SideBySide:
    """One sequence.

    Args:
        request, sequence: which.
        prompt: its beginning.
        golden, candidate: what was generated.
        differing: how many tokens differ; None where they were drawn at random.
        first: position of the first, if any.
        skipped, left: tokens before and after what is shown.
    """

    request: int
    sequence: int
    prompt: str
    golden: Sequence[Piece]
    candidate: Sequence[Piece]
    differing: int | None
    first: int | None
    skipped: int
    left: int


def side_by_side(found: Generated, decode: Decode | None) -> tuple[list[SideBySide], int]:
    """The sequences that differ first, then the others; and how many are not shown."""
    made = (pair for pair in (_forced(found) if found.forced else _free(found)) if pair.golden or pair.candidate)
    pairs = sorted(made, key=lambda pair: pair.first is None)
    return [pair.shown(found, decode) for pair in pairs[:SEQUENCES]], max(0, len(pairs) - SEQUENCES)


@dataclass(frozen=True)
class _Pair:
    """One sequence's generated tokens, from position ``start`` on; see `SideBySide`."""

    key: tuple[int, int]
    start: int
    golden: Sequence[int]
    candidate: Sequence[int]
    first: int | None
    greedy: bool
    forced: bool

    def shown(self, found: Generated, decode: Decode | None) -> SideBySide:
        """The part of it around the first token that differs."""
        begin = max(0, (self.first or 0) - BEFORE) if (self.first or 0) > TOKENS - BEFORE else 0
        end = begin + TOKENS
        golden, candidate = (
            list(self._pieces(tokens[begin:end], begin, decode)) for tokens in (self.golden, self.candidate)
        )
        differing = sum(a != b for a, b in zip(self.golden, self.candidate, strict=False)) if self.greedy else None
        position = None if self.first is None else self.start + self.first
        most = max(len(self.golden), len(self.candidate))
        prompt = _prompt(found, self.key[0], decode)
        return SideBySide(*self.key, prompt, golden, candidate, differing, position, begin, max(0, most - end))

    def _pieces(self, tokens: Sequence[int], begin: int, decode: Decode | None) -> Iterator[Piece]:
        kinds = ((self._kind(n), token) for n, token in enumerate(tokens, begin))
        for kind, same in groupby(kinds, key=lambda pair: pair[0]):
            ids = [token for _, token in same]
            yield Piece(_text(ids, decode), kind)

    def _kind(self, place: int) -> str:
        if self.first is None or place < self.first:
            return "same"
        if place == self.first:
            return "first"
        if not self.forced:
            return "after"
        return "same" if self.golden[place] == self.candidate[place] else "differs"


def _text(ids: Sequence[int], decode: Decode | None) -> str:
    return " ".join(map(str, ids)) if decode is None else decode(ids)


def _prompt(found: Generated, request: int, decode: Decode | None) -> str:
    texts, ids = found.golden.texts, found.golden.prompts[request]
    known = texts[request] if request < len(texts) else None
    text = known or _text(ids[: PROMPT if decode else PROMPT // 4], decode)
    return text if len(text) <= PROMPT else f"{text[:PROMPT]} ..."


def _free(found: Generated) -> Iterator[_Pair]:
    """Each side's own tokens."""
    parted = first_differences(found.golden, found.candidate)
    for key, tokens in sorted(found.golden.tokens.items()):
        start = len(found.golden.prompts[key[0]])
        first = None if key not in parted else max(0, parted[key] - start)
        mine, theirs = tokens[start:], found.candidate.tokens.get(key, ())[start:]
        yield _Pair(key, start, mine, theirs, first, found.golden.greedy[key[0]], False)


def _forced(found: Generated) -> Iterator[_Pair]:
    """Golden's tokens, and what the candidate would have chosen in the place of each."""
    places = found.places.where(np.lexsort(found.places.keys.T[::-1]))
    cuts = edges(places.keys[:, 0], places.keys[:, 1]) if len(places.keys) else []
    for begin, end in pairwise(cuts):
        request, sequence, start = places.keys[begin].tolist()
        mine, theirs = places.tokens[0][begin:end].tolist(), places.choices[1][begin:end].tolist()
        greedy = found.golden.greedy[request]
        apart = next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), None)
        yield _Pair((request, sequence), start, mine, theirs, apart if greedy else None, greedy, True)
