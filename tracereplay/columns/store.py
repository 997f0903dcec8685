"""A pass by columns: what each of its steps adds to its kind, in a few bytes.

    records ──Columns.add──▶ kind, numbers of rows, places of chunks: arrays over the steps

A comparison holds this for all steps, and bytes of tensors only for the window that it is at. So its memory hardly
grows with the length of a generation.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np

from tracereplay.columns.kinds import BLOCK, Cursor, Kind
from tracereplay.columns.stacks import Stacks
from tracereplay.columns.tensors import Ints
from tracereplay.trace.forms import ELSEWHERE, Form, StepRecord
from tracereplay.trace.joined import JoinedSegments
from tracereplay.trace.reader import SegmentReader
from tracereplay.trace.records import Located

__all__ = ["Columns", "Segment"]

AT_ONCE = 6  # blocks of which chunks are kept at most, where another pass has the rows of one in many windows

Segment = SegmentReader | JoinedSegments


def _ints(numbers: array[int]) -> Ints:
    return np.frombuffer(numbers, np.int64) if numbers else np.empty(0, np.int64)


class Columns:
    """The steps of a pass, added one after the other.

    Args:
        segments: of the pass's ranks.
        block: bytes of tensors that are read at a time; 0: `kinds.BLOCK`.
        held: bytes of chunks that are kept; 0: of two blocks, and up to `AT_ONCE` where that is too little.
        bits: whether tensors are read as integers of their element size; for others than numpy's own dtypes,
            ml_dtypes must be installed otherwise.
    """

    def __init__(
        self, segments: Sequence[Segment], block: int = 0, held: int = 0, *, bits: bool = False
    ) -> None:  # fmt: skip
        self.block = block or BLOCK
        self.held, self.bits = held or 2 * self.block, bits
        self.most = max(self.held, AT_ONCE * self.block)
        self.kinds: list[Kind] = []
        self.cursor = Cursor(self.read)
        self.segments = segments
        self._kind = array("q")
        self._number = array("q")
        self._ids = array("q")  # numbers of rows, map after map
        self._maps = array("q", [0])  # where each map's numbers begin
        self._first_map = array("q")  # of each step
        self._chunk = [array("q") for _ in segments]
        self._elsewhere = [array("q") for _ in segments]  # place, chunk, tensor, pieces, skip, strided
        self._elsewhere_at = [array("q", [0]) for _ in segments]

    def new_kind(self, forms: Sequence[Form | None]) -> Kind:
        """A kind of steps, of which nothing is known yet but the ranks' forms."""
        self.kinds.append(Kind(len(self.kinds), tuple(forms)))
        return self.kinds[-1]

    def add(self, kind: Kind, records: Sequence[StepRecord | None], ids: Sequence[Ints]) -> None:
        """Adds a step.

        Args:
            kind: of it.
            records: of all ranks.
            ids: numbers of the rows of each of the first rank's maps, -1 where they have none.
        """
        first = records[0]
        assert first is not None
        self._kind.append(kind.number)
        self._number.append(first.number)
        self._first_map.append(len(self._maps) - 1)
        for numbers in ids:
            self._ids.frombytes(np.ascontiguousarray(numbers, np.int64).tobytes())
            self._maps.append(len(self._ids))
        for rank, record in enumerate(records):
            self._chunk[rank].append(-1 if record is None else record.chunk)
            for place, told in ({} if record is None else record.elsewhere).items():
                self._elsewhere[rank].extend((place, *map(int, told)))
            self._elsewhere_at[rank].append(len(self._elsewhere[rank]))

    # -- what the steps say -----------------------------------------------------------------------------

    @cached_property
    def kind_of(self) -> Ints:
        """For each step the number of its kind, ``int64 [steps]``."""
        return _ints(self._kind)

    @cached_property
    def numbers(self) -> Ints:
        """For each step its number, ``int64 [steps]``."""
        return _ints(self._number)

    @cached_property
    def before(self) -> Ints:
        """For each step how many calls are before it, and how many there are, ``int64 [steps + 1]``."""
        counts = np.array([len(kind.calls) for kind in self.kinds], np.int64)
        return np.concatenate([[0], np.cumsum(counts[self.kind_of])])

    @cached_property
    def blocks(self) -> tuple[Ints, Ints]:
        """For each step its (first) block and its window, ``int64 [steps]`` each.

        Blocks are consecutive steps with at most `block` bytes, or parts of a larger step. A window is the steps
        of one kind that follow each other in a block. It ends where the number of a step is a multiple of a
        power of two, so that two passes whose steps differ little in size are cut at the same steps, and what is
        compared with one window of the one is in one of the other.
        """
        sizes = np.array([kind.size for kind in self.kinds], np.int64)
        extra = np.array([int(kind.block.max(initial=0)) for kind in self.kinds], np.int64)
        block, window = np.zeros(len(self.kind_of), np.int64), np.zeros(len(self.kind_of), np.int64)
        shifts = [max(self.block // max(int(size), 1), 1).bit_length() - 1 for size in sizes]
        at = room = 0
        number, last, group = -1, -1, -1
        for step, kind in enumerate(self.kind_of.tolist()):
            size, group_before = int(sizes[kind]), group
            group = step >> shifts[kind]
            if number < 0 or size > room or (kind == last and group != group_before):
                at = at + 1 if number >= 0 else 0
                room, last = self.block, -1
            room -= size
            if kind != last:
                number, last = number + 1, kind
            block[step], window[step] = at, number
            if extra[kind]:
                at, room = at + int(extra[kind]), 0
        return block, window

    @cached_property
    def windows(self) -> Ints:
        """For each window its first step, and the number of steps, ``int64 [windows + 1]``."""
        window = self.blocks[1]
        return np.concatenate([np.flatnonzero(np.diff(window, prepend=-1)), [len(window)]])

    @property
    def window_bytes(self) -> Ints:
        """Bytes of tensors in each window, ``int64 [windows]``."""
        sizes = np.array([kind.size for kind in self.kinds], np.int64)
        starts = self.windows
        found: Ints = sizes[self.kind_of[starts[:-1]]] * np.diff(starts)
        return found

    def cut_smaller(self) -> bool:
        """Halves the blocks, and so the windows; False if these have single steps already."""
        if len(self.windows) > len(self.kind_of):
            return False
        self.block //= 2
        for name in ("blocks", "windows"):
            self.__dict__.pop(name, None)
        self.stacks.let_go()
        return True

    def steps_of(self, kind: int) -> Ints:
        """The steps of a kind, in order."""
        return self._by_kind[kind]

    @cached_property
    def _by_kind(self) -> list[Ints]:
        order = np.argsort(self.kind_of, kind="stable")
        bounds = np.searchsorted(self.kind_of[order], np.arange(len(self.kinds) + 1))
        return [order[a:b] for a, b in pairwise(bounds.tolist())]

    def rows(self, steps: Ints, maps: Ints) -> tuple[Ints, Ints]:
        """Where the numbers of row maps are in `ids`: first, and how many. ``steps`` and ``maps`` in parallel."""
        starts = _ints(self._maps)
        at = _ints(self._first_map)[steps] + maps
        return starts[at], starts[at + 1] - starts[at]

    @cached_property
    def ids(self) -> Ints:
        """Numbers of rows, map after map."""
        return _ints(self._ids)

    # -- bytes ------------------------------------------------------------------------------------------

    def first_chunks(self, start: int, stop: int, rank: int) -> Sequence[int]:
        """The first own chunk of each of these steps."""
        return self._chunk[rank][start:stop]

    def read(self, step: int, rank: int, place: int, value: Located) -> bytes:
        """The bytes of a value of a form; see `kinds.Cursor`."""
        return self.segments[rank].load(self._located(step, rank, place, value))

    def _located(self, step: int, rank: int, place: int, value: Located) -> Located:
        if value.chunk >= 0:
            return value._replace(chunk=self._chunk[rank][step] + value.chunk)
        if value.chunk != ELSEWHERE:
            return value
        told = self._elsewhere[rank]
        for i in range(self._elsewhere_at[rank][step], self._elsewhere_at[rank][step + 1], 6):
            if told[i] == place:
                chunk, tensor, pieces, skip, strided = told[i + 1 : i + 6]
                return value._replace(chunk=chunk, tensor=tensor, pieces=pieces, skip=skip, strided=bool(strided))
        raise AssertionError(place)

    @cached_property
    def stacks(self) -> Stacks:
        """Chunks of many steps at once."""
        return Stacks(self)
