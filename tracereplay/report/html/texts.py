"""Both sides' tokens side by side, the ones that differ marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from tracereplay.columns.tensors import edges
from tracereplay.comparator.details import Generated
from tracereplay.comparator.tokens.generation import Generation, first_differences
from tracereplay.verdict import TokenDivergence

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
        prompt, other: its prompt's beginning; the candidate's, where that has another prompt.
        golden, candidate: what was generated.
        outcome: how they compare, in words.
        skipped, left: tokens before and after what is shown.
    """

    request: int
    sequence: int
    prompt: str
    other: str | None
    golden: Sequence[Piece]
    candidate: Sequence[Piece]
    outcome: str
    skipped: int
    left: int


def side_by_side(
    found: Generated, decode: Decode | None, first: TokenDivergence | None = None
) -> tuple[list[SideBySide], int]:
    """The sequence of the verdict's ``first`` token that differs, the others that differ, then those that do not;
    and how many are not shown."""
    made = (pair for pair in (_forced(found) if found.forced else _free(found)) if pair.golden or pair.candidate)
    told = None if first is None else (first.request, first.sequence)
    pairs = sorted(made, key=lambda pair: (pair.key != told, pair.first is None and not pair.apart))
    return [pair.shown(found, decode) for pair in pairs[:SEQUENCES]], max(0, len(pairs) - SEQUENCES)


@dataclass(frozen=True)
class _Pair:
    """One sequence's generated tokens, from position ``start`` on; see `SideBySide`.

    ``first`` is the place of the first token that differs, and ``apart`` says that there is nothing to compare, as
    each side has a prompt of its own, or the candidate has no such sequence.
    """

    key: tuple[int, int]
    start: int
    golden: Sequence[int]
    candidate: Sequence[int]
    first: int | None
    greedy: bool
    forced: bool
    apart: bool = False

    def shown(self, found: Generated, decode: Decode | None) -> SideBySide:
        """The part of it around the first token that differs."""
        begin = max(0, (self.first or 0) - BEFORE) if (self.first or 0) > TOKENS - BEFORE else 0
        end = begin + TOKENS
        golden, candidate = (
            list(self._pieces(tokens[begin:end], begin, decode)) for tokens in (self.golden, self.candidate)
        )
        most = max(len(self.golden), len(self.candidate))
        prompt = _prompt(found.golden, self.key[0], decode)
        other = _prompt(found.candidate, self.key[0], decode) if self.apart and self._known(found) else None
        return SideBySide(
            *self.key, prompt, other, golden, candidate, self._outcome(found), begin, max(0, most - end)
        )

    def _known(self, found: Generated) -> bool:
        """Whether the candidate has it."""
        return self.key in found.candidate.tokens

    def _outcome(self, found: Generated) -> str:
        if self.apart:
            return "each side has its own prompt" if self._known(found) else "nothing to compare in the candidate"
        if not self.greedy:
            return "drawn at random, not compared"
        if self.first is not None:
            return f"parts at position {self.start + self.first}"
        whole = len(self.golden) == len(self.candidate)
        return "the same tokens" if whole else "the same tokens as far as both go"

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


def _prompt(found: Generation, request: int, decode: Decode | None) -> str:
    texts, ids = found.texts, found.prompts[request]
    known = texts[request] if request < len(texts) else None
    text = known or _text(ids[: PROMPT if decode else PROMPT // 4], decode)
    return text if len(text) <= PROMPT else f"{text[:PROMPT]} ..."


def _free(found: Generated) -> Iterator[_Pair]:
    """Each side's own tokens."""
    parted = first_differences(found.golden, found.candidate)
    for key, tokens in sorted(found.golden.tokens.items()):
        prompt, given = found.golden.prompts[key[0]], found.candidate.prompts[key[0] : key[0] + 1]
        start, greedy = len(prompt), found.golden.greedy[key[0]]
        theirs = found.candidate.tokens.get(key, ())
        if not theirs or given != (prompt,):
            yield _Pair(
                key, start, tokens[start:], theirs[len(given[0]) if given else 0 :], None, greedy, False, True
            )
            continue
        first = None if key not in parted else max(0, parted[key] - start)
        yield _Pair(key, start, tokens[start:], theirs[start:], first, greedy, False)


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
