"""Both sides' tokens side by side, the ones that differ marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

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
    made = [_Pair.of(found, key) for key in sorted(found.golden.tokens)]
    pairs = sorted((pair for pair in made if pair.golden or pair.candidate), key=lambda pair: pair.first is None)
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

    @classmethod
    def of(cls, found: Generated, key: tuple[int, int]) -> _Pair:
        start = len(found.golden.prompts[key[0]])
        greedy = found.golden.greedy[key[0]]
        if not found.forced:
            mine, theirs = (side.tokens.get(key, ())[start:] for side in (found.golden, found.candidate))
            parted = first_differences(found.golden, found.candidate).get(key)
            return cls(key, start, mine, theirs, None if parted is None else parted - start, greedy, False)
        keys = found.places.keys
        here = (keys[:, 0] == key[0]) & (keys[:, 1] == key[1])
        order = keys[here, 2].argsort()
        mine, theirs = (side[here][order].tolist() for side in (found.places.tokens[0], found.places.choices[1]))
        apart = next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b), None)
        first = int(keys[here, 2].min()) if here.any() else start
        return cls(key, first, mine, theirs, apart if greedy else None, greedy, True)

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
